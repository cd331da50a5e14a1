"""Distances between two batches of images, one number per example."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jcm.metrics import lpips
from jcm.runtime.errors import JcmError

Images = Float[Array, " b *d"]


@runtime_checkable
class Distance(Protocol):
    """A distance, with the parameters that it reads.

    Attributes:
      params: of a perceptual distance's network; None where there are none. They are
        handed in with every call, so that they are no part of a compiled program.
    """

    params: Any

    def __call__(self, params: Any, a: Images, b: Images) -> Float[Array, " b"]:
        """One number per example."""


@dataclasses.dataclass(frozen=True)
class OfPixels:
    """A distance without parameters."""

    compare: Callable[[Images, Images], Float[Array, " b"]]
    params: None = None

    def __call__(self, params: None, a: Images, b: Images) -> Float[Array, " b"]:
        """One number per example; `params` is None."""
        return self.compare(a, b)


def _flat(a: Images, b: Images) -> Float[Array, "b n"]:
    return (a - b).reshape(a.shape[0], -1)


def l1(a: Images, b: Images) -> Float[Array, " b"]:
    """Mean absolute difference over all elements."""
    return jnp.mean(jnp.abs(_flat(a, b)), axis=-1)


def l2(a: Images, b: Images) -> Float[Array, " b"]:
    """Mean squared difference; the paper writes the sum, its code the mean."""
    return jnp.mean(_flat(a, b) ** 2, axis=-1)


def linf(a: Images, b: Images) -> Float[Array, " b"]:
    """Largest absolute difference."""
    return jnp.max(jnp.abs(_flat(a, b)), axis=-1)


def pseudo_huber(a: Images, b: Images, *, c: float) -> Float[Array, " b"]:
    """sqrt(|a - b|^2 + c^2) - c on the norm of the whole image (iCT, section 3.3).

    Per pixel, as some re-implementations have it, it would be another loss.
    """
    # Written without the difference of two near-equal roots.
    square = jnp.sum(_flat(a, b) ** 2, axis=-1)
    return square / (jnp.sqrt(square + c**2) + c)


def create(config: Any) -> Distance:
    """The distance that a config names.

    Args:
      config: the whole config; of `config.loss` count `metric`, `huber_c` (iCT uses
        0.00054 sqrt(elements)), `metric_size` and `metric_dtype`.

    Raises:
      JcmError: for an unknown name, weights that are missing, or images too small.
    """
    loss = config.loss
    simple = {"l1": l1, "l2": l2, "linf": linf}
    if loss.metric in simple:
        return OfPixels(simple[loss.metric])
    if loss.metric == "pseudo_huber":
        if loss.huber_c <= 0:
            raise JcmError(f"config.loss.huber_c={loss.huber_c} must be positive")
        return OfPixels(lambda a, b: pseudo_huber(a, b, c=loss.huber_c))
    if loss.metric in lpips.NAMES:
        distance = lpips.load(
            loss.metric,
            size=loss.metric_size,
            dtype=loss.metric_dtype,
            folder=config.weights,
        )
        size = config.data.image_size
        image = jax.ShapeDtypeStruct((1, size, size, config.data.channels), jnp.float32)
        jax.eval_shape(distance, distance.params, image, image)  # refuses small ones
        return distance
    raise JcmError(
        f"config.loss.metric={loss.metric!r} is unknown: use one of"
        f" {', '.join((*simple, 'pseudo_huber', *lpips.NAMES))}"
    )
