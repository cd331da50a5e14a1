"""What the pickle in a file of PyTorch describes: tensors by name."""

import dataclasses
import io
from typing import Any

import ml_dtypes
import numpy as np

from jcm.runtime import budget, pickles
from jcm.runtime.pickles import Name

_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A reference to numbers that are stored elsewhere in the file."""

    key: str
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(file: io.BytesIO) -> Any:
    """Reads one pickle, from the position of the file to the end of the pickle.

    Args:
      file: at most `budget.PICKLE_BYTES`.

    Raises:
      budget.Refused: if it holds anything else than PyTorch writes of tensors, or too
        much.
      Exception: if it is damaged.
    """
    return pickles.read(file, _CALLS, _storage)


def _storage(pid: Any) -> Storage:
    """Describes a storage, if each part is what PyTorch writes."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or any(pid[5:]):
        raise budget.Refused("a storage is not described as PyTorch does it")
    kind, named, key = pid[:3]
    if (type(kind), type(named), type(key)) != (str, Name, str):
        raise budget.Refused("a storage is not described as PyTorch does it")
    if kind != "storage" or named.name not in _DTYPES:
        raise budget.Refused(f"unknown kind of storage {kind[:80]!r}")
    return Storage(key, _DTYPES[named.name])


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Describes a tensor, if each number is one."""
    if (type(storage), type(shape), type(strides)) != (Storage, tuple, tuple):
        raise budget.Refused("a tensor is not described as PyTorch does it")
    if max(len(shape), len(strides)) > budget.DIMENSIONS:
        raise budget.Refused(f"a tensor has more than {budget.DIMENSIONS} dimensions")
    if any(
        type(number) is not int or not 0 <= number < 2**63
        for number in (offset, *shape, *strides)
    ):
        raise budget.Refused("a tensor is not described as PyTorch does it")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _sizes(sizes: Any) -> tuple[Any, ...]:
    if type(sizes) is not tuple:
        raise budget.Refused("a shape is not described as PyTorch does it")
    return sizes


def _dictionary() -> dict[str, Any]:
    return {}


_CALLS: pickles.Calls = {
    Name("collections", "OrderedDict"): _dictionary,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch", "Size"): _sizes,
    **{
        Name(module, name): None
        for module in ("torch", "torch.storage")
        for name in _DTYPES
    },
}
