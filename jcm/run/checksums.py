"""Checksums that detect corruption, computed on the devices of the arrays.

`checkpoints.py` writes them beside the arrays and compares them when it restores.
"""

import functools
import json
import zlib
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
    """Returns the sum of word * (2 * position + 1), modulo 2**32, over a block.

    A word is the bits of an element, and its position is its index in the flattened
    array. The weights are odd, so that a flipped bit always changes the sum. They
    depend on the position, so that the sum depends on the order of the elements but
    not on how the array is split over devices: integers can be added in any order.

    Args:
      part: a block of an array.
      first: the position of the block's first element.
      strides: the difference of the positions of neighbours along each axis.
    """
    words = part.astype(jnp.uint8) if part.dtype == bool else part
    words = lax.bitcast_convert_type(words, _WORDS[words.dtype.itemsize])
    position = jnp.full(part.shape, first, jnp.uint32)
    for axis, stride in enumerate(strides):
        along = lax.broadcasted_iota(jnp.uint32, part.shape, axis)
        position += along * np.uint32(stride % 2**32)
    return jnp.sum(words.astype(jnp.uint32) * (2 * position + 1), dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """Returns the checksum of each array in a tree, by its path in the tree.

    Every process must call this. The checksum depends on the bits of the array and not
    on the devices and processes that hold it. Each device sums the blocks of which it
    holds the first copy, without waiting for other devices, and the host adds the sums.

    Args:
      tree: arrays of at most 32 bits per element.
    """
    leaves = jax.tree.leaves_with_path(jax.tree.map(jnp.asarray, tree))
    parts = [
        [
            _checksum(shard.data, *_position(leaf.shape, shard.index))
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


def checksum_of_json(value: Any) -> int:
    """Returns a checksum of a value, by its text as JSON."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _position(
    shape: tuple[int, ...], index: tuple[slice, ...]
) -> tuple[np.uint32, tuple[int, ...]]:
    """Returns the position of the first element of a block, and the array's strides."""
    strides = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    starts = (part.start or 0 for part in index)
    first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    return np.uint32(first % 2**32), tuple(strides)
