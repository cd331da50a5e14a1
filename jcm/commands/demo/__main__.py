"""Serves a page to try a model in a browser.

python -m jcm.commands.demo --load=runs/digits_cd [--host=127.0.0.1] [--port=7860]
"""

import importlib.util
from collections.abc import Sequence

from absl import flags, logging

from jcm import config as config_lib
from jcm.commands import cli
from jcm.commands.demo.actions import Actions
from jcm.model.loading import load
from jcm.runtime import distributed
from jcm.runtime.errors import JcmError

_LOAD = flags.DEFINE_string("load", "", "A model: anything that jcm.load opens.")
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 allows other machines."
)
_PORT = flags.DEFINE_integer(
    "port", 0, "Port of the page; 0 for the first free one from 7860."
)
# Images per call of the sampler; the page shows few at a time.
_BATCH = 8


def main(argv: Sequence[str]) -> None:
    """Serves the page until it is interrupted.

    Raises:
      JcmError: if the model cannot be opened, or if gradio is missing.
    """
    cli.check_arguments(argv)
    if not _LOAD.value:
        raise JcmError(
            "name a model that jcm.load opens, such as --load=runs/digits_cd"
        )
    if importlib.util.find_spec("gradio") is None:
        raise JcmError("the page needs gradio: pip install -e '.[demo]' in the clone")
    distributed.initialize(config_lib.base())
    actions = Actions(load(_LOAD.value, batch_size=_BATCH))
    from jcm.commands.demo import page  # imports gradio

    made = page.build(actions)
    try:
        _, address, _ = made.launch(
            server_name=_HOST.value,
            server_port=_PORT.value or None,
            theme=page.theme(),
            footer_links=[],
            max_file_size="32mb",
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise JcmError(
            f"cannot listen on {_HOST.value}, port {_PORT.value or 'any'}: use another"
            " --host or --port"
        ) from error
    logging.info("open %s in a browser; Ctrl-C ends the program", address)
    try:
        made.block_thread()
    finally:
        made.close()  # otherwise SIGTERM would wait for the server's thread forever


if __name__ == "__main__":
    cli.run(main)
