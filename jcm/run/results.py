"""Results of a command in a workdir; those of earlier settings are kept beside them.

results.json    for each command, the settings that made its results
earlier/N/      results that were made with other settings, and these as settings.json
"""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from jcm.run import storage
from jcm.runtime import files, json_files

_RECORD, _EARLIER = "results.json", "earlier"


def make_room(
    workdir: pathlib.Path, command: str, names: Sequence[str], settings: Mapping
) -> None:
    """Makes room in a workdir for results of a command.

    Results of the same settings will be replaced. Those of other settings are moved
    into the next folder WORKDIR/earlier/1, 2, ..., and a line of the log says so. Only
    process 0 calls this.

    Args:
      workdir: a folder from `storage.local_folder`.
      command: such as "evaluate".
      names: the files that the command writes into the workdir.
      settings: all that the results depend on, as plain data.

    Raises:
      JcmError: if results.json is damaged, or a file cannot be written.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists
    path = workdir / _RECORD
    try:
        record = json_files.read(path, dict[str, dict[str, Any]], "delete it")
    except FileNotFoundError:
        record = {}
    before = record.get(command)
    present = [name for name in names if (workdir / name).exists()]
    if present and before != settings:
        places = (workdir / _EARLIER / str(i) for i in itertools.count(1))
        place = next(each for each in places if not each.exists())
        files.write_json(place / "settings.json", before)
        for name in present:
            os.replace(workdir / name, place / name)
        logging.info(
            "the settings of %s have changed: moved the earlier %s to %s",
            *(command, ", ".join(present), storage.shared_path(place)),
        )
    files.write_json(path, record | {command: settings})
