"""Arrays of the host and of devices, and the keys of random numbers."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from jcm.runtime.errors import JcmError

AnyArray = Array | np.ndarray


def as_key(seed: Key[Array, ""] | int) -> Key[Array, ""]:
    """The JAX key of an integer; a key is returned as it is.

    Raises:
      JcmError: for an integer that does not fit into 32 bits, of which JAX would drop
        the rest.
    """
    if isinstance(seed, jax.Array):
        return seed
    if not 0 <= seed < 2**32:
        raise JcmError(f"seed={seed} must be at least 0 and below 2**32")
    return jax.random.key(seed)


def local_copy(params: Any) -> Any:
    """This process's copy of parameters that every process holds in full."""
    return jax.tree.map(
        lambda leaf: (
            leaf
            if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
            else leaf.addressable_data(0)
        ),
        params,
    )
