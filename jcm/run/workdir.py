"""The folder of a run, and the record of the settings that made it.

run.json        the resolved config, class names and fingerprint of the data, and the
                versions and devices of each start
parameters.txt  the shapes of the parameters of the network
checkpoints/    one folder per saved step
damaged/        checkpoints that could not be read
profile/        traces of steps, if config.profile asks for them
metrics.jsonl, events.*    numbers and pictures over time
samples/        grids of samples during training; what `jcm sample` writes
evaluation/     the scores so far, and the samples of an evaluation in progress
scores.md, scores.json, comparison.png, search.json    results
results.json, earlier/N/    the settings of the results; results of other settings
snapshots/      power averages of the weights, which are never deleted
teachers/NAME/  the workdir of a teacher that this run has trained first
"""

import dataclasses
import datetime
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import msgspec
from absl import logging
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm.run import storage
from jcm.runtime import files, json_files, versions
from jcm.runtime.errors import JcmError

# The folders that have one folder for each saved step.
_STEPS = ("checkpoints", "snapshots")
# The names of these folders. Orbax writes a step under a longer name first.
_STEP = re.compile("0|[1-9][0-9]{0,9}")

# The fields that may differ between two starts of a run. They change what is shown,
# where the data is or how the work is divided.
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
    "train.snapshot_every",
    "train.skip_nonfinite",
    "teacher_train.log_every",
    "teacher_train.sample_every",
    "teacher_train.checkpoint_every",
    "teachers",  # the hashes of their weights are compared instead
    "mesh",
    "profile",
    "sample",
    "eval",
    "search",
    "weights",
)

# The sections on teachers, which only methods with a teacher have.
_OF_TEACHERS = ("teachers", "teacher_train")


@dataclasses.dataclass(frozen=True)
class Record:
    """The settings and the data that a run was made with.

    Attributes:
      config: the whole config.
      class_names: the names of the classes of the data set.
      data_fingerprint: a hash of the content of the data set.
      teacher_hashes: a hash of the weights of each teacher, by its name.
      starts: of each start of the run, its `step`, its `time`, and what
        `versions.environment` returns.
    """

    config: ConfigDict
    class_names: tuple[str, ...]
    data_fingerprint: str
    teacher_hashes: dict[str, str] = dataclasses.field(default_factory=dict)
    starts: tuple[dict[str, Any], ...] = ()

    @property
    def software(self) -> str:
        """The versions and devices of all starts in words; "" if none is recorded."""
        texts: list[str] = []
        last = ""
        for start in self.starts:
            text = versions.in_words(start)
            if text != last:
                texts.append(f"from step {start['step']}: {text}" if texts else text)
            last = text
        return "; ".join(texts)


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    """The content of run.json."""

    format: int
    config: dict[str, Any]
    class_names: tuple[str, ...]
    data_fingerprint: str
    teacher_hashes: dict[str, str]
    starts: tuple[dict[str, str | int], ...]

    def __post_init__(self) -> None:
        for start in self.starts:
            step, time = start.get("step"), start.get("time")
            if not (isinstance(step, int) and step >= 0 and isinstance(time, str)):
                raise ValueError("starts: each needs a step and a time")


def read(workdir: str | os.PathLike) -> Record:
    """Returns the record of a run.

    Raises:
      JcmError: if there is none, or it cannot be read.
    """
    path = storage.local_folder(workdir) / "run.json"
    remedy = "restore it, or use another workdir"
    try:
        versions.check_format(path, f"{path} was written by", remedy)
        found = json_files.read(path, _Record, remedy)
    except FileNotFoundError as error:
        raise JcmError(
            f"{workdir} is not the workdir of a run, since it has no run.json: name"
            " the workdir of a run"
        ) from error
    return Record(
        config_lib.recorded(found.config, path),
        found.class_names,
        found.data_fingerprint,
        found.teacher_hashes,
        found.starts,
    )


def claim(workdir: str | os.PathLike, record: Record, section: str = "train") -> None:
    """Writes the record of a new run, or checks that it equals that of an old run.

    Every process must call this. A run without a checkpoint has nothing to lose, so it
    may start again with other settings.

    Args:
      workdir: the run's folder.
      record: of the run.
      section: where the length of the run is set, for the error.

    Raises:
      JcmError: if the folder holds a run with other settings or other data, or one that
        has done more steps; the message names the first difference. The folder is then
        left unchanged.
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
                f" {old.data_fingerprint}, not {record.data_fingerprint}): use another"
                " workdir"
            )
        done, asked = newest_step(workdir), record.config.train.num_steps
        if asked < done:
            raise JcmError(
                f"{workdir} holds a run that has done {done} steps, more than"
                f" config.{section}.num_steps={asked}: set at least {done}, or use"
                " another workdir"
            )
        # Those of the teachers may change once their weights have been compared.
        config = record.config.copy_and_resolve_references()
        for section in _OF_TEACHERS:
            if section in config:
                config[section] = old.config[section]
        record = dataclasses.replace(
            record,
            config=config,
            teacher_hashes=old.teacher_hashes,
            starts=old.starts,
        )
    elif begun:
        raise JcmError(
            f"{workdir} has checkpoints but no run.json, so another program has written"
            " it: use another workdir"
        )
    _write(workdir, record)
    storage.sync(workdir)  # no process may start before all have checked


def record_start(workdir: str | os.PathLike, step: int) -> None:
    """Records the versions and devices of a start; warns if the last one had others.

    Every process must call this.

    Args:
      workdir: the run's folder.
      step: the step from which the run starts.
    """
    old, now = read(workdir), versions.environment()
    if old.starts and jax.process_index() == 0:
        if changed := versions.differences(old.starts[-1], now):
            logging.warning(
                "this run resumes with other versions or devices (%s): its numbers may"
                " differ in the last bits from those of an uninterrupted run",
                "; ".join(changed),
            )
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = {"step": step, "time": time} | now
    _write(workdir, dataclasses.replace(old, starts=(*old.starts, start)))


def claim_teachers(
    workdir: str | os.PathLike, config: ConfigDict, hashes: dict[str, str]
) -> None:
    """Records the weights of the teachers, or checks that they are the same.

    Args:
      workdir: the run's folder.
      config: names the teachers.
      hashes: a hash of the weights of each teacher, by its name.

    Raises:
      JcmError: if the run has used other weights.
    """
    old = read(workdir)
    before, now = (teacher_paths(each, workdir) for each in (old.config, config))
    for name, found in hashes.items():
        if _begun(workdir) and old.teacher_hashes.get(name) != found:
            changed = (
                "which have changed since the run started: restore them"
                if before.get(name) == now[name]
                else f"and not those in {before.get(name)}: name that one"
            )
            raise JcmError(
                f"{workdir} holds a run with another teacher {name} than the weights in"
                f" {now[name]}, {changed}, or use another workdir"
            )
    _write(workdir, dataclasses.replace(old, config=config, teacher_hashes=hashes))


def teacher_paths(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, str]:
    """Returns the path of each teacher that the config of a run names."""
    return {
        name: os.path.join(workdir, "teachers", name)
        if config_lib.is_file(source)
        else source
        for name, source in config.teachers.items()
        if source
    }


def check_same_settings(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Checks that a config describes the run in a workdir.

    Fields that only change what is shown or where the data is may differ.

    Raises:
      JcmError: if there is no run, or it has other settings; the message names the
        first one that differs.
    """
    # Without a teacher to train, it does not matter how one was trained.
    trains_teacher = any(map(config_lib.is_file, config.teachers.values()))
    free = () if trains_teacher else _OF_TEACHERS
    for name, before, now in config_lib.differences(
        read(workdir).config, config, ignore=(*_FREE, *free)
    ):
        if name == "train.num_steps" and not config_lib.uses_num_steps(config):
            continue
        otherwise = (
            "to train longer, continue from it there, with config.init.model="
            f"{os.fspath(workdir)!r} and config.init.state=True"
            if name == "train.num_steps"
            else "to sample or evaluate, the workdir without a config is enough"
        )
        raise JcmError(
            f"{workdir} holds a run with config.{name}={before!r}, not {now!r}: use"
            f" another workdir, or the same setting; {otherwise}"
        )


def _begun(workdir: str | os.PathLike) -> bool:
    """Returns whether the run has a checkpoint or a snapshot, or has begun to save."""
    return any(re.match("[0-9]", name) for name in _step_names(workdir))


def newest_step(workdir: str | os.PathLike) -> int:
    """Returns the newest step that is saved; 0 if there is none.

    Raises:
      JcmError: if there is a file in place of a folder of steps.
    """
    steps = map(int, filter(_STEP.fullmatch, _step_names(workdir)))
    return max((step for step in steps if step < 2**31), default=0)


def _step_names(workdir: str | os.PathLike) -> Iterator[str]:
    """Yields the names of the folders in which steps are, or are being, saved."""
    for name in _STEPS:
        folder = storage.shared_path(workdir) / name
        if not folder.exists():
            continue
        if not folder.is_dir():
            raise JcmError(f"{folder} is not a folder: move it away")
        for path in folder.iterdir():
            if path.is_dir():
                yield path.name


def _write(workdir: str | os.PathLike, record: Record) -> None:
    fields = {"format": versions.FORMAT} | dataclasses.asdict(record)
    fields["config"] = record.config.to_dict()
    if jax.process_index() == 0:
        path = pathlib.Path(workdir) / "run.json"
        files.write_json(path, fields)
