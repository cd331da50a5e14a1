"""The server of the page: `jcm demo`."""

import argparse
import importlib.util

from absl import logging

from jcm import config as config_lib
from jcm.commands.demo.actions import Actions
from jcm.model.loading import load
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError

# Images per call of the sampler; the page shows few at a time.
_BATCH = 8


def main(arguments: argparse.Namespace) -> None:
    """Serves the page until it is interrupted.

    Args:
      arguments: the flags `flags.DEMO`.

    Raises:
      JcmError: if the model cannot be opened, or if gradio is missing.
    """
    if importlib.util.find_spec("gradio") is None:
        raise JcmError("the page needs gradio: pip install -e '.[demo]' in the clone")
    distributed.initialize(config_lib.base())
    actions = Actions(load(arguments.model, batch_size=_BATCH))
    from jcm.commands.demo import page  # imports gradio

    made = page.build(actions)
    try:
        _, address, _ = made.launch(
            server_name=arguments.host,
            server_port=arguments.port or None,
            theme=page.theme(),
            footer_links=[],
            max_file_size="32mb",
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise JcmError(
            f"cannot listen on {arguments.host}, port {arguments.port or 'any'}: use"
            " another --host or --port"
        ) from error
    logging.info("open %s in a browser; Ctrl-C ends the program", address)
    try:
        made.block_thread()
    finally:
        made.close()  # otherwise SIGTERM would wait for the server's thread forever
