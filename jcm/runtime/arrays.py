"""The array types of signatures, random keys, and local copies of parameters."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jcm.runtime.errors import JcmError

AnyArray = Array | np.ndarray


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
    try:
        seed = operator.index(seed)
    except TypeError:
        raise JcmError(f"seed={seed!r} must be a whole number or a JAX key") from None
    if not 0 <= seed < 2**32:
        raise JcmError(f"seed={seed} must be at least 0 and below 2**32")
    return jax.random.key(seed)


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
