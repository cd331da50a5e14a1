"""What a Python user holds: a trained model that samples, denoises and edits."""
