"""Numbers that tell arrays from damaged ones, computed where the arrays are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt32

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def _checksum(leaf: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Sum of bits x (2 place + 1), modulo 2**32.

    Each weight is odd, so that no flipped bit is lost, and it grows with the place in
    the whole array, so that the sum knows order but not how the array is split over
    devices: integers may be added in any order.
    """
    words = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    words = lax.bitcast_convert_type(words, _WORDS[words.dtype.itemsize])
    place, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        along = lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        place += along * np.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    return jnp.sum(words.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """A checksum of each array of a tree, by its path.

    The same for the same bits, whatever the devices and processes that hold them.
    Every process must call.
    """
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _checksum(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    return {path: int(value) for path, value in jax.device_get(found).items()}
