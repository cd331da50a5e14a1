"""Reads the scores that a workdir holds."""

import json


def recorded(workdir):
    """Returns the recorded scores of an evaluation, one for each set of samples."""
    lines = (workdir / "evaluation" / "scores.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
