"""Scores of samples and the networks that they look through."""
