"""Weights from elsewhere, read without running foreign code."""
