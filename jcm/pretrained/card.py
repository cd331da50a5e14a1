"""The text beside a shared model: what it is, what it scored, whose it is."""

import statistics
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

_USE = {
    "jcm": """import jcm

images = jcm.load("FOLDER").sample(0, 16)  # in [-1, 1]""",
    "diffusers": """from diffusers import ConsistencyModelPipeline

images = ConsistencyModelPipeline.from_pretrained("FOLDER")(batch_size=16).images""",
}


def markdown(
    about: str,
    *,
    form: str,
    config: ConfigDict | None,
    records: Sequence[dict[str, Any]],
    licence: str,
    notes: str,
) -> str:
    """A model card.

    Args:
      about: a sentence on the model.
      form: of the folder: "jcm" or "diffusers".
      config: of the run that trained it; None for what was trained elsewhere.
      records: what was scored of it, as in evaluation/scores.jsonl.
      licence: its name, such as apache-2.0; empty where nobody says.
      notes: what else there is to say, in Markdown.
    """
    parts = ["---", f"library_name: {form}"]
    if licence:
        parts.append(f"license: {licence}")
    parts += [
        "---",
        "",
        "# A consistency model" if form == "diffusers" else "# A model",
    ]
    parts += ["", about, "", "```python", _USE[form], "```"]
    if config is not None:
        parts += ["", "## Training", "", _training(config)]
    if records:
        parts += ["", "## Scores", "", _scores(records)]
    if notes.strip():
        parts += ["", "## Notes", "", notes.strip()]
    parts += ["", "## Licence", "", licence or "Not stated."]
    return "\n".join(parts) + "\n"


def _training(config: ConfigDict) -> str:
    teacher = f", teacher `{config.teacher}`" if config.method == "cd" else ""
    loss = "" if config.method == "edm" else f", metric `{config.loss.metric}`"
    return (
        f"Method `{config.method}`{teacher}{loss}; data `{config.data.name}` at"
        f" {config.data.image_size}x{config.data.image_size}; batches of"
        f" {config.train.batch_size}; optimiser `{config.optim.name}`, learning rate"
        f" {config.optim.learning_rate}."
    )


def _scores(records: Sequence[dict[str, Any]]) -> str:
    """A table: mean over the seeds of each way of sampling."""
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for record in records:
        row = values.setdefault((record["samples"], record["num_images"]), {})
        for name, value in record["scores"].items():
            row.setdefault(name, []).append(value)
    columns = list(dict.fromkeys(name for row in values.values() for name in row))
    lines = [f"| samples | images | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for (title, count), row in values.items():
        cells = [
            f"{statistics.fmean(row[name]):.4g}" if name in row else ""
            for name in columns
        ]
        lines.append(f"| {title} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)
