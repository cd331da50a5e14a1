"""What each program does, top to bottom: one file for each command."""
