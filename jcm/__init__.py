"""Consistency models in JAX."""
