"""The interface of records that are read by their numbers."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

Batch = dict[str, UInt8[np.ndarray, "n h w c"] | Int32[np.ndarray, " n"]]
"""Images, uint8 (n, h, w, c), as "image", and their labels, int32 (n,), as "label"."""


@runtime_checkable
class Records(Protocol):
    """Records that are read by their numbers."""

    def __len__(self) -> int:
        """Returns the number of records."""

    def take(self, numbers: Int[np.ndarray, " n"]) -> Batch:
        """Returns a new copy of some records."""
