"""A run's folder: what it was made with, and where its parts lie.

run.json        the resolved config, class names and fingerprint of the data
checkpoints/    one folder per saved step
damaged/        checkpoints that could not be read
profile/        traces of steps, where config.profile asks for them
metrics.jsonl, events.*    numbers and pictures over time
samples/        grids of samples
evaluation/     what was scored, and samples under way
scores.md, scores.json, comparison.png, search.json    what was found
teacher/        the teacher's own workdir, where it was trained on the way
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm.run import storage
from jcm.runtime import files
from jcm.runtime.errors import JcmError

# A line for each model, way of sampling and seed that was scored.
SCORES = os.path.join("evaluation", "scores.jsonl")

# What may differ between two starts of one run: it changes what is shown or where,
# and never the numbers of the training.
_FREE = (
    "data.path",
    "data.dir",
    "data.cache_mib",
    "data.workers",
    "data.skip_broken",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "teacher",  # its weights are compared
    "mesh",
    "profile",
    "train.skip_nonfinite",
    "sample",
    "eval",
    "search",
    "weights",
)


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run was made with.

    Attributes:
      config: all settings.
      class_names: of the data set.
      data_fingerprint: of the data set's content.
      teacher_hash: of the weights that are distilled; empty where there are none.
    """

    config: ConfigDict
    class_names: tuple[str, ...]
    data_fingerprint: str
    teacher_hash: str = ""


def read(workdir: str | os.PathLike) -> Record:
    """The record of a run.

    Raises:
      JcmError: where there is none, or it cannot be read.
    """
    path = storage.local_folder(workdir) / "run.json"
    try:
        fields = json.loads(path.read_text())
        config = config_lib.from_dict(fields["config"])
        names = tuple(fields["class_names"])
        fingerprints = fields["data_fingerprint"], fields["teacher_hash"]
    except OSError as error:
        raise JcmError(
            f"{workdir} is not the workdir of a run: there is no run.json in it"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JcmError(
            f"{path} cannot be read ({error}): restore it, or use another workdir"
        ) from error
    return Record(config, names, *fingerprints)


def claim(workdir: str | os.PathLike, record: Record) -> None:
    """Writes the record of a new run, or makes sure that it is the same run.

    A run without a checkpoint has nothing to lose: it may begin anew with other
    settings.

    Raises:
      JcmError: where the folder holds a run with other settings or other data; names
        the first that differs. Nothing is changed then.
    """
    workdir = pathlib.Path(workdir)
    storage.check_same_folder(workdir)
    path = workdir / "run.json"
    begun = _begun(workdir)
    if path.exists() and begun:
        check_same_settings(workdir, record.config)
        old = read(workdir)
        if old.data_fingerprint != record.data_fingerprint:
            raise JcmError(
                f"{workdir} holds a run on other data (fingerprint"
                f" {old.data_fingerprint}, now {record.data_fingerprint}): use another"
                " --workdir"
            )
        record = dataclasses.replace(record, teacher_hash=old.teacher_hash)
    elif begun:
        raise JcmError(
            f"{workdir} has checkpoints but no run.json: it was written by another "
            "program; use another --workdir"
        )
    _write(workdir, record)
    storage.sync(workdir)  # none may begin before all have looked


def claim_teacher(workdir: str | os.PathLike, teacher_hash: str) -> None:
    """Notes which weights a run distils, or makes sure that they are the same.

    Raises:
      JcmError: where the run has distilled other weights.
    """
    old = read(workdir)
    if _begun(workdir) and old.teacher_hash != teacher_hash:
        raise JcmError(
            f"{workdir} holds a run with another teacher: the weights in"
            f" {teacher_place(old.config, workdir)} are not those it began with;"
            " restore them, or use another --workdir"
        )
    _write(workdir, dataclasses.replace(old, teacher_hash=teacher_hash))


def teacher_place(config: ConfigDict, workdir: str | os.PathLike) -> str | None:
    """Where the teacher of a run lies; None where the config names none."""
    if config_lib.is_file(config.teacher):
        return os.path.join(workdir, "teacher")
    return config.teacher or None


def check_same_settings(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Makes sure that a config describes the run in a workdir.

    What only changes what is shown, or where the data lies, may differ.

    Raises:
      JcmError: where there is no run, or it has other settings; names the first.
    """
    before, now = (flatten(c.to_dict()) for c in (read(workdir).config, config))
    for key in sorted(before.keys() | now.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in _FREE)
        if before.get(key) != now.get(key) and not free and not _longer(key, config):
            raise JcmError(
                f"{workdir} holds a run with config.{key}={before.get(key)!r}, and not "
                f"{now.get(key)!r}: use another --workdir, or the same setting; to"
                " sample or evaluate, --workdir without --config is enough"
            )


def scores(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """What was scored in a workdir, in order, without lines that a kill has cut."""
    path = pathlib.Path(workdir) / SCORES
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            logging.warning("%s: a line is not whole and does not count", path)
    return records


def _begun(workdir: str | os.PathLike) -> bool:
    """Whether there is a checkpoint to lose."""
    folder = storage.shared_path(workdir) / "checkpoints"
    return folder.exists() and any(path.name[0].isdigit() for path in folder.iterdir())


def _write(workdir: str | os.PathLike, record: Record) -> None:
    fields = dataclasses.asdict(record) | {"config": record.config.to_dict()}
    if jax.process_index() == 0:
        path = pathlib.Path(workdir) / "run.json"
        files.write_json(path, fields)


def _longer(key: str, config: ConfigDict) -> bool:
    """Whether this is the length of a run that does not plan by it."""
    return key == "train.num_steps" and config.loss.scales != "adaptive"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, as JSON gives them back."""
    if not isinstance(tree, dict):
        # JSON has no tuples.
        return {prefix[:-1]: list(tree) if isinstance(tree, tuple) else tree}
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.")
    return flat
