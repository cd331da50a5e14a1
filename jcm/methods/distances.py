"""Distances between images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jcm.metrics import lpips
from jcm.runtime.arrays import check_floats
from jcm.runtime.errors import JcmError
from jcm.runtime.fields import Field

Images = Float[Array, " b *d"]
"""A batch of images, or of other arrays of one shape."""


@runtime_checkable
class Distance(Protocol):
    """A distance between two batches of images, with its parameters."""

    @property
    def params(self) -> Any:
        """Parameters of a perceptual distance's network, or None.

        They are passed to every call, so that they do not become constants of a
        compiled program.
        """

    def __call__(self, params: Any, a: Images, b: Images) -> Float[Array, " b"]:
        """Returns the distance of each pair of images."""


@dataclasses.dataclass(frozen=True)
class OfPixels:
    """A distance without parameters.

    Attributes:
      compare: returns the distance of each pair of images.
      params: None.
    """

    compare: Callable[[Images, Images], Float[Array, " b"]]
    params: None = None

    def __call__(self, params: None, a: Images, b: Images) -> Float[Array, " b"]:
        """Returns the distance of each pair of images; `params` is None."""
        return self.compare(a, b)


def _flat(a: Images, b: Images) -> Float[Array, "b n"]:
    """Returns a - b; the difference of uint8 would wrap around."""
    check_floats("a", a)
    check_floats("b", b)
    return (a - b).reshape(a.shape[0], -1)


def l1(a: Images, b: Images) -> Float[Array, " b"]:
    """Returns the mean absolute difference over all elements."""
    return jnp.mean(jnp.abs(_flat(a, b)), axis=-1)


def l2(a: Images, b: Images) -> Float[Array, " b"]:
    """Returns the mean squared difference.

    Song et al. 2023 write the sum; their code has the mean.
    """
    return jnp.mean(_flat(a, b) ** 2, axis=-1)


def linf(a: Images, b: Images) -> Float[Array, " b"]:
    """Returns the largest absolute difference."""
    return jnp.max(jnp.abs(_flat(a, b)), axis=-1)


def pseudo_huber(a: Images, b: Images, *, c: float) -> Float[Array, " b"]:
    """Returns sqrt(|a - b|^2 + c^2) - c, with the norm of the whole image.

    Song and Dhariwal 2023 (iCT), section 3.3. Some other implementations apply it to
    each pixel, which is a different loss.
    """
    # This form avoids the difference of two nearly equal numbers.
    square = jnp.sum(_flat(a, b) ** 2, axis=-1)
    return square / (jnp.sqrt(square + c**2) + c)


OF_PIXELS: dict[
    str, Callable[[Any], Callable[[Images, Images], Float[Array, " b"]]]
] = {
    "l1": lambda loss: l1,
    "l2": lambda loss: l2,
    "linf": lambda loss: linf,
    "pseudo_huber": lambda loss: functools.partial(pseudo_huber, c=loss.huber_c),
}
"""The distances without parameters, as functions of `config.loss`, by name.

Those with a network are in `metrics/lpips.py`.
"""


SETTINGS = {
    "metric": Field(
        "lpips",
        "distance of images: l1, l2, linf, pseudo_huber, lpips, lpips_alex,"
        " lpips_squeeze or efficientnet_lite0",
    ),
    "metric_size": Field(
        224,
        "size in pixels to which perceptual metrics enlarge images; 0 keeps their size",
        least=0,
    ),
    "metric_dtype": Field(
        "float32", "type of a perceptual metric: float32 or bfloat16"
    ),
    "huber_c": Field(0.03, "c of pseudo_huber", above=0),
}
"""The fields of `config.loss` that `create` reads."""


def create(config: Any) -> Distance:
    """Returns the distance that a config names.

    Args:
      config: the whole config. `config.loss` has `metric`, `huber_c` (iCT uses 0.00054
        sqrt(number of elements)), `metric_size` and `metric_dtype`.

    Raises:
      JcmError: if the name is unknown, if weights are missing, or if the images are too
        small for a perceptual distance.
    """
    loss = config.loss
    SETTINGS["huber_c"].check("config.loss.huber_c", loss.huber_c)
    if loss.metric in OF_PIXELS:
        return OfPixels(OF_PIXELS[loss.metric](loss))
    if loss.metric in lpips.NAMES:
        distance = lpips.load(
            loss.metric,
            size=loss.metric_size,
            dtype=loss.metric_dtype,
            folder=config.weights,
        )
        size = config.data.image_size
        image = jax.ShapeDtypeStruct((1, size, size, config.data.channels), jnp.float32)
        jax.eval_shape(distance, distance.params, image, image)  # checks the size
        return distance
    raise JcmError(
        f"config.loss.metric={loss.metric!r} is unknown: use one of"
        f" {', '.join((*OF_PIXELS, *lpips.NAMES))}"
    )
