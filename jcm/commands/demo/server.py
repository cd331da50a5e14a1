"""The server of the page: `jcm demo`."""

import argparse
import contextlib
import importlib.util
import ipaddress
import os
import time

from absl import logging

from jcm import config as config_lib
from jcm.commands.demo.actions import Actions
from jcm.commands.demo.folder import Folder
from jcm.model.loading import load
from jcm.runtime import distributed, leftovers, memory
from jcm.runtime.errors import JcmError

# Images per call of the sampler; the page shows few at a time.
_BATCH = 8
# Seconds between two searches for old files.
_TIDY = 30.0
# Threads for calls, of which one computes, while others may answer short events.
_THREADS = 4
# How many visitors gradio remembers; each takes about 100 KB.
_SESSIONS = 100


def main(arguments: argparse.Namespace) -> None:
    """Serves the page until it is interrupted.

    Args:
      arguments: the flags `flags.DEMO`.

    Raises:
      JcmError: if the model cannot be opened, or if gradio is missing.
    """
    if importlib.util.find_spec("gradio") is None:
        raise JcmError("the page needs gradio: pip install -e '.[demo]' in the clone")
    memory.share_pools()  # gradio has many threads
    distributed.initialize(config_lib.base())
    actions = Actions(load(arguments.model, batch_size=_BATCH))
    with leftovers.temporary_folder("demo") as folder:
        _serve(actions, Folder(folder), arguments.host, arguments.port)


def _serve(actions: Actions, folder: Folder, host: str, port: int) -> None:
    """Serves the page of a model until the program is interrupted."""
    # Gradio reads these when it is imported: where it keeps files, and how often it
    # computes statistics of all calls, which nothing shows.
    os.environ["GRADIO_TEMP_DIR"] = str(folder.path)
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(2**62)
    from starlette.middleware import Middleware

    from jcm.commands.demo import gate, page

    made = page.build(actions, folder)
    names = {
        each.api_name
        for each in made.fns.values()
        if each.api_name and each.api_visibility == "public"
    }
    front = Middleware(gate.Gate, folder=folder, numbers=set(made.fns), names=names)
    try:
        _, address, _ = made.launch(
            server_name=host,
            server_port=port or None,
            theme=page.theme(),
            footer_links=[],
            max_file_size=gate.UPLOAD_BYTES,
            max_threads=_THREADS,
            app_kwargs={"middleware": [front]},
            state_session_capacity=_SESSIONS,
            enable_monitoring=False,
            mcp_server=False,
            run_history=False,
            ssr_mode=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise JcmError(
            f"cannot listen on {host}, port {port or 'any'}: use another --host or"
            " --port"
        ) from error
    if warning := exposed(host):
        logging.warning("%s", warning)
    logging.info("open %s in a browser; Ctrl-C ends the program", address)
    try:
        while True:
            time.sleep(_TIDY)
            folder.tidy()
            memory.release()
    finally:
        made.close()  # otherwise SIGTERM would wait for the server's thread forever


def exposed(host: str) -> str | None:
    """Returns what other machines can do at an address; None if they cannot."""
    from jcm.commands.demo import gate, page

    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host.strip("[]")).is_loopback:
            return None
    if host == "localhost":
        return None
    return (
        f"whoever can reach {host} can use this model, and the time of this machine:"
        " there is no password, and nothing is encrypted. One call runs at a time and"
        f" {page.WAITING} wait. Uploads of up to {gate.UPLOAD_BYTES >> 20} MiB are kept"
        " for an hour; no other file can be read"
    )
