"""The model card of a saved model: what it is, its scores and its licence."""

import dataclasses
import json
import statistics
from collections.abc import Sequence

from ml_collections import ConfigDict

from jcm.run.recorded_scores import Score
from jcm.runtime import markdown as markdown_lib
from jcm.runtime.errors import printable

_USE = {
    "jcm": """import jcm

images = jcm.load("FOLDER").sample(16)  # in [-1, 1]""",
    "diffusers": """from diffusers import ConsistencyModelPipeline

images = ConsistencyModelPipeline.from_pretrained("FOLDER")(batch_size=16).images""",
}

# A card shows at most so many ways of sampling, and so many scores of each.
_MOST_ROWS, _MOST_COLUMNS = 100, 50
# A line of scores for the screen has at most this many characters.
_LONGEST_LINE = 2000


@dataclasses.dataclass(frozen=True)
class About:
    """Facts about the weights of a model.

    The texts may come from a file of others. A card shows them as they are, without an
    effect of Markdown or HTML in them, apart from notes that are trusted.

    Attributes:
      trained: whether the config describes how they were trained. If not, they come
        from elsewhere, and it only describes the network and how to sample.
      scores: records of their scores, as in evaluation/scores.jsonl.
      software: the versions and devices that they were trained with, in words; empty if
        they are unknown.
      licence: name of the licence, such as apache-2.0; empty if it is not stated.
      notes: further text in Markdown.
      trusted: whether the notes were passed to `jcm.save`, or are those of this package
        for a published model. Others were read from a file.
    """

    trained: bool = True
    scores: tuple[Score, ...] = ()
    software: str = ""
    licence: str = ""
    notes: str = ""
    trusted: bool = dataclasses.field(default=True, compare=False)


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
        licence = json.dumps(printable(about.licence, _LONGEST_LINE))
        parts.append(f"license: {licence}")  # JSON is YAML
    parts += ["---", "", "# Model card", "", sentence]
    parts += ["", "```python", _USE[form], "```"]
    if about.trained:
        parts += ["", "## Training", "", _training(config)]
        if about.software:
            software = markdown_lib.text(about.software, markdown_lib.LONGEST_BLOCK)
            parts += ["", f"Software: {software}."]
    if about.scores:
        parts += ["", "## Scores", "", _scores(about.scores)]
    if about.notes.strip():
        notes = about.notes.strip()
        if not about.trusted:
            notes = f"As they were in the loaded model:\n\n{markdown_lib.block(notes)}"
        parts += ["", "## Notes", "", notes]
    licence = markdown_lib.text(about.licence) or "Not stated."
    parts += ["", "## Licence", "", licence]
    return "\n".join(parts) + "\n"


def _training(config: ConfigDict) -> str:
    """Returns a line on method, data and optimiser."""
    code = markdown_lib.code
    teacher = "".join(
        f", teacher {code(source)}" for source in config.teachers.values() if source
    )
    metric = config.loss.get("metric")
    loss = f", metric {code(metric)}" if metric else ""
    return (
        f"Method {code(config.method)}{teacher}{loss}; data {code(config.data.name)} at"
        f" {config.data.image_size}x{config.data.image_size}; batches of"
        f" {config.train.batch_size}; optimiser {code(config.optim.name)}, learning"
        f" rate {config.optim.learning_rate}."
    )


def in_words(records: Sequence[Score]) -> str:
    """Returns a line with the mean scores of each way of sampling; "" without any."""
    ways = [
        f"{title}: {' '.join(f'{name} {value:.4g}' for name, value in row.items())}"
        f" of {count:,} images"
        for (title, count), row in _means(records).items()
    ]
    return printable("; ".join(ways), _LONGEST_LINE)


def _scores(records: Sequence[Score]) -> str:
    """Returns a table of the mean scores of each way of sampling."""
    rows = dict(list(_means(records).items())[-_MOST_ROWS:])
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = columns[:_MOST_COLUMNS]
    return markdown_lib.table(
        ["samples", "images", *columns],
        [
            (title, count, *(f"{row[n]:.4g}" if n in row else "" for n in columns))
            for (title, count), row in rows.items()
        ],
    )


def _means(records: Sequence[Score]) -> dict[tuple[str, int], dict[str, float]]:
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
