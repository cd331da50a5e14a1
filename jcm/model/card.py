"""The model card of a saved model: what it is, its scores and its licence."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

_USE = {
    "jcm": """import jcm

images = jcm.load("FOLDER").sample(16)  # in [-1, 1]""",
    "diffusers": """from diffusers import ConsistencyModelPipeline

images = ConsistencyModelPipeline.from_pretrained("FOLDER")(batch_size=16).images""",
}


@dataclasses.dataclass(frozen=True)
class About:
    """Facts about the weights of a model.

    Attributes:
      trained: whether the config describes how they were trained. If not, they come
        from elsewhere, and it only describes the network and how to sample.
      scores: records of their scores, as in evaluation/scores.jsonl.
      software: the versions and devices that they were trained with, in words; empty if
        they are unknown.
      licence: name of the licence, such as apache-2.0; empty if it is not stated.
      notes: further text in Markdown.
    """

    trained: bool = True
    scores: tuple[dict[str, Any], ...] = ()
    software: str = ""
    licence: str = ""
    notes: str = ""


def markdown(sentence: str, form: str, config: ConfigDict, about: About) -> str:
    """Returns a model card in Markdown.

    Args:
      sentence: describes the model.
      form: of the saved folder: "jcm" or "diffusers".
      config: of the model.
      about: facts about its weights.
    """
    parts = ["---", f"library_name: {form}"]
    if about.licence:
        parts.append(f"license: {json.dumps(about.licence)}")  # JSON is YAML
    parts += ["---", "", "# Model card", "", sentence]
    parts += ["", "```python", _USE[form], "```"]
    if about.trained:
        parts += ["", "## Training", "", _training(config)]
        if about.software:
            parts += ["", f"Software: {about.software}."]
    if about.scores:
        parts += ["", "## Scores", "", _scores(about.scores)]
    if about.notes.strip():
        parts += ["", "## Notes", "", about.notes.strip()]
    parts += ["", "## Licence", "", about.licence or "Not stated."]
    return "\n".join(parts) + "\n"


def _training(config: ConfigDict) -> str:
    """Returns a line on method, data and optimiser."""
    teacher = "".join(
        f", teacher `{source}`" for source in config.teachers.values() if source
    )
    metric = config.loss.get("metric")
    loss = f", metric `{metric}`" if metric else ""
    return (
        f"Method `{config.method}`{teacher}{loss}; data `{config.data.name}` at"
        f" {config.data.image_size}x{config.data.image_size}; batches of"
        f" {config.train.batch_size}; optimiser `{config.optim.name}`, learning rate"
        f" {config.optim.learning_rate}."
    )


def in_words(records: Sequence[dict[str, Any]]) -> str:
    """Returns a line with the mean scores of each way of sampling; "" without any."""
    ways = [
        f"{title}: {' '.join(f'{name} {value:.4g}' for name, value in row.items())}"
        f" of {count:,} images"
        for (title, count), row in _means(records).items()
    ]
    return "; ".join(ways)


def _scores(records: Sequence[dict[str, Any]]) -> str:
    """Returns a table of the mean scores of each way of sampling."""
    rows = _means(records)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| samples | images | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for (title, count), row in rows.items():
        cells = [f"{row[name]:.4g}" if name in row else "" for name in columns]
        lines.append(f"| {title} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _means(
    records: Sequence[dict[str, Any]],
) -> dict[tuple[str, int], dict[str, float]]:
    """Returns the scores by way of sampling and number of images, as means of seeds.

    Samples with other noise levels may have the same title; the latest count.
    """
    latest = {record["samples"]: record.get("sigmas") for record in records}
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for record in records:
        if record.get("sigmas") != latest[record["samples"]]:
            continue
        row = values.setdefault((record["samples"], record["num_images"]), {})
        for name, value in record["scores"].items():
            row.setdefault(name, []).append(value)
    return {
        way: {name: statistics.fmean(each) for name, each in row.items()}
        for way, row in values.items()
    }
