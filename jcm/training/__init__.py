"""The parts of a training run, which know no method by name."""
