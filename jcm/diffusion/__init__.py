"""The mathematics: noise levels, preconditioning, solvers, sampling, edits."""
