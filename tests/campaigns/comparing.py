"""What a run leaves on disk, as values that are equal if and only if the runs are."""

import hashlib
import json
import pathlib
import re
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

# Fields of numbers that differ between two equal runs.
_CLOCK = ("data_wait_secs", "steps_per_sec", "images_per_sec", "eta_secs")
_TIMES = re.compile(r"tfevents|\.lock$|^cache/xla/")
_SAVED = re.compile(r"(.*)(checkpoints|snapshots)/(\d+)/")


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """Returns a value for each file below a folder, by its path.

    Arrays of checkpoints and pixels are replaced by hashes. Of checkpoints, only the
    newest is compared, since a run that was stopped has saved other steps before.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not _TIMES.search(name) and not _SAVED.match(name):
            found[name] = _content(path)
        elif path.is_dir() and not any(path.iterdir()):
            found[name] = "an empty folder"
    for part in ("checkpoints", "snapshots"):
        for steps in folder.glob(f"run/**/{part}"):
            found |= _saved(steps, str(steps.relative_to(folder)))
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Returns what differs, one short text for each file."""
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            found.append(f"{name} is new")
        elif name not in ours:
            found.append(f"{name} is missing")
        elif ours[name] != theirs[name]:
            found.append(f"{name}: {_where(ours[name], theirs[name])}")
    return found


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a part of a checkpoint, as they are on disk."""
    import jax
    import orbax.checkpoint as ocp

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # of a file that only a whole step has
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            shapes = checkpointer.metadata(folder).item_metadata.tree
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            args = jax.tree.map(lambda _: as_numpy, shapes)
            tree = checkpointer.restore(
                folder, args=ocp.args.PyTreeRestore(restore_args=args)
            )
    finally:
        logging.set_verbosity(verbosity)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _saved(steps: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns the names of the saved steps, and a hash of each array of the newest."""
    names = sorted(path.name for path in steps.iterdir())
    odd = [each for each in names if not each.isdigit()]
    numbers = sorted(int(each) for each in names if each.isdigit())
    newest = numbers[-1:] if name.endswith("checkpoints") else numbers
    found: dict[str, Any] = {
        f"{name} (number of steps)": len(numbers),
        f"{name} (not a step)": odd,
        f"{name} (newest)": newest,
    }
    for step in newest:
        for part in sorted((steps / str(step)).iterdir()):
            label = f"{name}/{step}/{part.name}"
            if part.name in ("checksums", "log"):
                content = json.loads((part / "metadata").read_text())
                content.pop("log", None)  # the checksum of what contains times
                if part.name == "log":
                    content["totals"] = _without_times(content["totals"])
                found[label] = content
            elif part.is_dir():
                found[label] = {
                    key: _digest(value) for key, value in arrays(part).items()
                }
    return found


def _records(folder: pathlib.Path) -> dict[str, str]:
    """Returns a hash of the records of each split of a prepared data set.

    The same records may be stored as other bytes.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    found = {}
    for split in builder.info.splits:
        digest = hashlib.sha256()
        for record in builder.as_data_source(split):
            digest.update(f"{record['image'].shape} {record['label']}".encode())
            digest.update(record["image"].tobytes())
        found[split] = digest.hexdigest()
    return found


def _content(path: pathlib.Path) -> Any:
    """Returns the content of a file without times."""
    if "array_record" in path.name:
        return _records(path.parent)
    if path.suffix == ".png":
        return _digest(np.asarray(Image.open(path)))
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: _digest(file[name]) for name in file.files}
    if path.suffix == ".jsonl":
        return [
            _without_times(json.loads(line)) for line in path.read_text().splitlines()
        ]
    if path.name == "prepared.json":  # it has the hashes of these bytes
        return sorted(json.loads(path.read_text())["files"])
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    drop = (*_CLOCK, "starts")
    return {name: value for name, value in content.items() if name not in drop}


def _digest(array: np.ndarray) -> str:
    about = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(about + array.tobytes()).hexdigest()


def _where(ours: Any, theirs: Any) -> str:
    """Returns the first place in which two contents differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = ours.keys() | theirs.keys()
        differ = [key for key in sorted(names) if ours.get(key) != theirs.get(key)]
        key = differ[0]
        inner = _where(ours.get(key), theirs.get(key))
        return f"{len(differ)} of {len(names)} differ, {key}: {inner}"
    if isinstance(ours, list) and isinstance(theirs, list):
        pairs = enumerate(zip(ours, theirs, strict=False))
        for place, (a, b) in pairs:
            if a != b:
                return f"item {place}: {_where(a, b)}"
        return f"{len(ours)} items instead of {len(theirs)}"
    return f"{str(ours)[:60]} instead of {str(theirs)[:60]}"
