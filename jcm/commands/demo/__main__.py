"""A page to play with a model, in a browser.

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

_LOAD = flags.DEFINE_string("load", "", "A model: whatever jcm.load opens.")
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Where to listen; 0.0.0.0 lets other machines in."
)
_PORT = flags.DEFINE_integer("port", 0, "Of the page; 0: the first free from 7860 on.")
# Images at a time: what a few results need.
_BATCH = 8


def main(argv: Sequence[str]) -> None:
    """Serves the page until it is interrupted.

    Raises:
      JcmError: for a model that cannot be opened, or where gradio is missing.
    """
    cli.check_arguments(argv)
    if not _LOAD.value:
        raise JcmError("name a model: --load=runs/digits_cd, or what jcm.load opens")
    if importlib.util.find_spec("gradio") is None:
        raise JcmError("the page needs gradio: pip install -e '.[demo]' in the clone")
    distributed.initialize(config_lib.base())
    actions = Actions(load(_LOAD.value, batch_size=_BATCH))
    from jcm.commands.demo import page  # needs gradio

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
            " --port, or none"
        ) from error
    logging.info("open %s in a browser; Ctrl-C ends it", address)
    try:
        made.block_thread()
    finally:
        made.close()  # SIGTERM would wait for the server's thread for ever


if __name__ == "__main__":
    cli.run(main)
