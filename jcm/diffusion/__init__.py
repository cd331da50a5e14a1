"""The mathematics: noise levels, preconditioning, solvers, sampling and editing."""
