"""Conversion of a model to a folder to share: `jcm convert`."""

import argparse

from absl import logging

from jcm import config as config_lib
from jcm.commands import flags
from jcm.model import save
from jcm.model.loading import load
from jcm.runtime import distributed


def main(arguments: argparse.Namespace) -> None:
    """Loads a model and saves it as a folder.

    Args:
      arguments: the flags `flags.CONVERT` and `flags.HINTS`.

    Raises:
      JcmError: for any error that the user can fix.
    """
    distributed.initialize(config_lib.base())
    hints = flags.values(arguments, flags.HINTS)
    hints = {name: value for name, value in hints.items() if value is not None}
    model = load(arguments.source, ema=arguments.ema, step=arguments.step, **hints)
    save.save(
        model,
        arguments.folder,
        to=arguments.to,
        licence=arguments.licence,
        notes=arguments.notes,
    )
    folder = arguments.folder
    logging.info("wrote %s: jcm.load(%r) opens it", folder, folder)
