"""The array types of signatures, random keys, and checks of values and types."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Key, Real

from jcm.runtime import arguments
from jcm.runtime.errors import JcmError

AnyArray = Array | np.ndarray

Whole = int | np.integer | Integer[AnyArray, ""]
"""A whole number of Python, NumPy or JAX; `arguments.whole` makes an int of it."""
Number = float | np.number | Real[AnyArray, ""]
"""A number of Python, NumPy or JAX."""


def as_key(seed: Any) -> Key[Array, ""]:
    """Returns the JAX key of an integer seed; a key is returned unchanged.

    Args:
      seed: an integer, a key of `jax.random.key`, or one of `jax.random.PRNGKey`.

    Raises:
      JcmError: if it is something else, or an integer that is negative or has more than
        32 bits, which JAX would truncate.
    """
    if isinstance(seed, jax.Array) and np.ndim(seed) == 0:
        if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return seed
    if getattr(seed, "dtype", None) == np.uint32 and np.shape(seed) == (2,):
        return jax.random.wrap_key_data(seed)
    return jax.random.key(whole_seed(seed, " or a JAX key"))


def whole_seed(seed: Any, otherwise: str = "") -> int:
    """Returns a seed as a Python integer.

    Args:
      seed: an integer, also one of NumPy or JAX.
      otherwise: what a seed may be, too, for the error.

    Raises:
      JcmError: if it is no integer, or if it is negative or has more than 32 bits,
        which JAX would truncate.
    """
    number = arguments.whole("seed", seed, otherwise=otherwise)
    if not 0 <= number < 2**32:
        raise JcmError(f"seed={number} must be at least 0 and below 2**32")
    return number


LARGEST_WEIGHT = 1e6
"""Weights beyond this magnitude are damaged; those of trained networks are smaller."""


def check_finite(tree: Any, remedy: str, most: float = math.inf) -> None:
    """Checks that no weight is NaN, infinite or too large.

    Args:
      tree: a tree of arrays. Of an array that spans several processes, only the part of
        this process is checked, and of a traced array nothing.
      remedy: what to do, for the error.
      most: the largest magnitude that is allowed.

    Raises:
      JcmError: names the first array with such a value.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array | np.ndarray):
            continue
        if isinstance(leaf, jax.core.Tracer) or not _is_floating(leaf):
            continue
        parts = [leaf]
        if isinstance(leaf, jax.Array):
            parts = [shard.data for shard in leaf.addressable_shards[:1]]
            if not leaf.is_fully_replicated:
                parts = [shard.data for shard in leaf.addressable_shards]
        largest = max((_largest(np.asarray(part)) for part in parts), default=0.0)
        if largest <= most and largest < math.inf:
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not math.isfinite(largest):
            raise JcmError(f"the weights {name} are not finite: {remedy}")
        raise JcmError(
            f"the weights {name} have values up to {largest:.3g}, and more than"
            f" {most:.3g} cannot be right: {remedy}"
        )


def _largest(array: np.ndarray) -> float:
    """Returns the largest magnitude of an array; infinity if a value is NaN."""
    if not array.size:
        return 0.0
    with np.errstate(invalid="ignore"):  # NumPy warns of NaN in bfloat16
        ends = float(array.min()), float(array.max())
    return math.inf if any(map(math.isnan, ends)) else max(map(abs, ends))


def check_floats(name: str, images: Any) -> None:
    """Checks that images are floats, since integers are read as pixels elsewhere.

    Raises:
      JcmError: if their type is another one, such as uint8.
    """
    dtype = getattr(images, "dtype", None)
    if dtype is not None and not _is_floating(images):
        raise JcmError(
            f"{name} is {dtype}: pass floats in [-1, 1], as jcm.to_float returns"
        )


def _is_floating(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def process_local(params: Any) -> Any:
    """Returns parameters as arrays of this process alone.

    Args:
      params: a tree of arrays. An array that spans several processes must be
        replicated, so that each process holds all of it.
    """
    return jax.tree.map(
        lambda leaf: (
            leaf
            if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
            else leaf.addressable_data(0)
        ),
        params,
    )
