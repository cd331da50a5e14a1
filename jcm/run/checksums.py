"""Numbers that tell arrays from damaged ones, computed where the arrays are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt32

from jcm.runtime import distributed

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@functools.partial(jax.jit, static_argnames="strides")
def _checksum(
    part: Shaped[Array, "..."],
    first: UInt32[Array, ""],
    strides: tuple[int, ...],
) -> UInt32[Array, ""]:
    """Sum of bits x (2 place + 1), modulo 2**32, of a part of an array.

    Each weight is odd, so that no flipped bit is lost, and it grows with the place in
    the whole array, so that the sum knows order but not how the array is split over
    devices: integers may be added in any order.

    Args:
      part: a block of an array.
      first: place of its first element in the whole.
      strides: how far neighbours along each axis are apart in the whole.
    """
    words = part.astype(jnp.uint8) if part.dtype == bool else part
    words = lax.bitcast_convert_type(words, _WORDS[words.dtype.itemsize])
    place = jnp.full(part.shape, first, jnp.uint32)
    for axis, stride in enumerate(strides):
        along = lax.broadcasted_iota(jnp.uint32, part.shape, axis)
        place += along * np.uint32(stride % 2**32)
    return jnp.sum(words.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """A checksum of each array of a tree, by its path.

    The same for the same bits, whatever the devices and processes that hold them.
    Every process must call. No device waits for another: each looks at the parts that
    it holds first of all, and the host adds up.
    """
    leaves = jax.tree.leaves_with_path(jax.tree.map(jnp.asarray, tree))
    parts = [
        [
            _checksum(shard.data, *_place(leaf.shape, shard.index))
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        ]
        for _, leaf in leaves
    ]
    mine = [sum(map(int, each)) % 2**32 for each in jax.device_get(parts)]
    total = distributed.gather(np.array(mine, np.uint64)).sum(axis=0) % 2**32
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
    ]
    return dict(zip(names, total.tolist(), strict=True))


def _place(
    shape: tuple[int, ...], index: tuple[slice, ...]
) -> tuple[np.uint32, tuple[int, ...]]:
    """Where the first element of a block is in an array, and the array's strides."""
    strides = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    starts = (part.start or 0 for part in index)
    first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    return np.uint32(first % 2**32), tuple(strides)
