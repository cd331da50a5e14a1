"""Trained models: load, sample, denoise, edit, score and save them."""
