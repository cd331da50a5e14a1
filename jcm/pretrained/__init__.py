"""Checkpoints of other projects, which are read without running any code in them."""
