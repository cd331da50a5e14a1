"""Programs that measure speed, memory and the quality of edits."""
