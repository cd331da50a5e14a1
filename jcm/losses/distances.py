"""Distances between two batches of images, one number per example."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jcm.errors import JcmError

Images = Float[Array, "b *d"]
Distance = Callable[[Images, Images], Float[Array, " b"]]


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


def create(name: str, *, huber_c: float) -> Distance:
    """The distance called `name` in a config.

    Args:
      name: l1, l2, linf, pseudo_huber or lpips.
      huber_c: c of the pseudo-Huber distance; iCT uses 0.00054 sqrt(elements).

    Raises:
      JcmError: for an unknown name, or weights that are missing.
    """
    simple = {"l1": l1, "l2": l2, "linf": linf}
    if name in simple:
        return simple[name]
    if name == "pseudo_huber":
        if huber_c <= 0:
            raise JcmError(f"config.loss.huber_c={huber_c} must be positive")
        return lambda a, b: pseudo_huber(a, b, c=huber_c)
    if name == "lpips":
        raise JcmError(
            "config.loss.metric='lpips' needs the weights of VGG16 (vgg16-397923af.pth)"
            " and of the LPIPS v0.1 linear heads (vgg.pth), which this version cannot"
            " read yet: use --config.loss.metric=pseudo_huber"
        )
    raise JcmError(
        f"config.loss.metric={name!r} is unknown: use one of l1, l2, linf,"
        " pseudo_huber, lpips"
    )
