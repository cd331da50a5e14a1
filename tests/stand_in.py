"""A tiny network in place of the published ones, which compute features of images.

As a program, this file runs `jcm` with it, once or twice:

python tests/stand_in.py COMMAND [FLAG ...] [--then COMMAND FLAG ...]
"""

import sys

import jax.numpy as jnp

from jcm import main
from jcm.metrics import networks
from jcm.runtime import distributed

_THEN = "--then"


def network(name: str = "inception") -> networks.FeatureNetwork:
    """Returns a network whose features are some of the pixels."""

    def apply(params, x):
        flat = x.reshape(len(x), -1) * params["scale"]
        every_fourth, every_eighth = flat[:, ::4], flat[:, ::8]
        return {
            "pool": every_fourth,
            "stage": every_fourth,
            "spatial": every_eighth,
            "logits": flat[:, :10],
        }

    return networks.FeatureNetwork(name, {"scale": jnp.full(1, 3, jnp.float32)}, apply)


def load(name: str, folder: str = "") -> networks.FeatureNetwork:
    """Takes the place of `jcm.metrics.networks.load`."""
    del folder
    return network(name)


if __name__ == "__main__":
    networks.load = load
    then = sys.argv.index(_THEN) if _THEN in sys.argv else len(sys.argv)
    for words in (sys.argv[1:then], sys.argv[then + 1 :]):
        if words:
            sys.argv[1:] = words
            try:
                main.command_line()
            except SystemExit as ended:
                if ended.code:
                    raise
            # The processes have joined.
            distributed.initialize = lambda *_, **__: None
