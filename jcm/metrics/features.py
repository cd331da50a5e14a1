"""Features of images, computed batch by batch on all local devices."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jcm.data import images as images_lib
from jcm.metrics.networks import FeatureNetwork
from jcm.runtime import sharding
from jcm.runtime.errors import JcmError

# The number of images on each device at a time. On a CPU, a small number keeps the
# activations in the cache, which makes Inception faster.
_BATCH_PER_DEVICE = {"cpu": 4}


def check_uint8(images: np.ndarray) -> None:
    """Checks that images are uint8 of shape (n, h, w, c).

    Raises:
      JcmError: if they are not.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise JcmError(
            f"cannot score images of type {images.dtype} and shape {images.shape}: pass"
            " uint8 images (n, height, width, channels), as jcm.to_uint8 makes them"
        )


def check_count(name: str, least: int, asked: int, given: int | None) -> None:
    """Checks before the long work that there will be enough samples for a score.

    Args:
      name: of the score.
      least: the fewest samples that it accepts.
      asked: `config.eval.num_images`.
      given: the number of samples that another program made; None if a model will make
        as many as `asked`.

    Raises:
      JcmError: if there are too few.
    """
    if (asked if given is None else given) >= least:
        return
    if given is None:
        found = f"config.eval.num_images is {asked}: raise it"
    else:
        found = f"there are {given} samples: make more of them"
    raise JcmError(
        f"{name} needs at least {least} images, but {found}, or choose other scores"
        " with config.eval.scores, or none with config.eval.scores=()"
    )


def extract(
    network: FeatureNetwork,
    batches: Iterable[np.ndarray],
    wanted: Iterable[str],
) -> Iterator[dict[str, Float[np.ndarray, "_n d"]]]:
    """Computes features of images, in order.

    The devices work on the next batch while the caller uses the features of a batch.

    Args:
      network: the network that computes the features.
      batches: uint8 images (n, h, w, c), in batches of any size.
      wanted: names of the features to compute; other features are not computed.

    Yields:
      The features of each batch by name, each (n, d) float32.

    Raises:
      JcmError: if the images are not uint8.
    """
    mesh = sharding.make_mesh(devices=jax.local_devices())
    size = _BATCH_PER_DEVICE.get(jax.default_backend(), 64) * jax.local_device_count()
    apply = _compiled(network.apply, tuple(sorted(wanted)))
    params = jax.device_put(network.params, sharding.replicated(mesh))
    before = None
    for batch in batches:
        check_uint8(batch)
        begun = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
            begun.append(apply(params, jax.device_put(padded, sharding.batch(mesh))))
        if before:
            yield _finished(*before)
        before = begun, len(batch)
    if before:
        yield _finished(*before)


def _finished(
    parts: list[dict[str, Array]], count: int
) -> dict[str, Float[np.ndarray, "_n d"]]:
    return {
        name: np.concatenate([np.asarray(part[name]) for part in parts])[:count]
        for name in parts[0]
    }


@functools.cache
def _compiled(
    function: Callable[..., dict[str, Array]], wanted: tuple[str, ...]
) -> Callable[..., dict[str, Array]]:
    def apply(params: Any, x: Array) -> dict[str, Array]:
        # By default, some devices multiply matrices at a lower precision, which would
        # change the scores.
        with jax.default_matmul_precision("float32"):
            found = function(params, images_lib.to_float(x))
        return {name: found[name] for name in wanted}

    return jax.jit(apply)
