"""Checkpoints of other projects, read without running any code in them."""
