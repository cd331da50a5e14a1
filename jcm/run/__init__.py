"""What a run leaves on disk: state, checkpoints, numbers, pictures, locks."""
