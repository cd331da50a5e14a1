"""Pickles of PyTorch that describe tensors, read without running what they name.

A pickle is a program for a small machine with a stack. In general this machine can call
anything that the pickle names. The one here knows the operations that PyTorch writes,
makes dictionaries, lists, tuples, numbers, texts and descriptions of tensors, and calls
nothing. Each operation makes at most one object, so that the memory of the result is
bounded by the number of operations.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jcm.runtime import budget

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


class Refused(Exception):
    """The content is not what a file of weights holds; the message states why."""


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


class _Name(NamedTuple):
    """What a pickle names, in place of the class or function."""

    module: str
    name: str


def read(file: io.BytesIO) -> Any:
    """Reads one pickle, from the position of the file to the end of the pickle.

    Args:
      file: at most `budget.PICKLE_BYTES`.

    Raises:
      Refused: if it holds anything else than PyTorch writes of tensors, or too much.
      Exception: if it is damaged.
    """
    machine = _Machine()
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if operation.name == "STOP":
            return machine.pop()
        act = _ACTIONS.get(operation.name)
        if act is None:
            raise Refused(f"it uses {operation.name}, which is refused")
        if count >= budget.PICKLE_OPERATIONS:
            raise Refused("the description of the tensors does not end")
        act(machine, argument)
    raise Refused("it does not end")


class _Machine:
    """The stack and the memory of a pickle while it is read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        """Adds a value to the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Removes the last value of the stack."""
        return self.stack.pop()

    def mark(self, _: None) -> None:
        """Begins a new part of the stack."""
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Removes the last part of the stack."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def set_items(self, items: list[Any]) -> None:
        """Puts keys and values into the dictionary on the stack."""
        target = self.stack[-1]
        if type(target) is not dict:
            raise Refused(f"items are put into a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only the hash of a text cannot be chosen, nor take long to compute.
            if type(key) is not str:
                raise Refused(f"a key is a {type(key).__name__}")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        """Puts values into the list on the stack."""
        target = self.stack[-1]
        if type(target) is not list:
            raise Refused(f"values are put into a {type(target).__name__}")
        target.extend(values)

    def tuple_of(self, count: int) -> None:
        """Makes a tuple of the last values of the stack."""
        if len(self.stack) < count:
            raise Refused("its stack is empty")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(values)

    def name(self, module: Any, name: Any) -> None:
        """Adds one of the few names that are allowed."""
        named = _Name(module, name)
        if type(module) is not str or type(name) is not str:
            raise Refused("a name is no text")
        storage = module in ("torch", "torch.storage") and name in _DTYPES
        if not storage and named not in _CALLS:
            text = f"{module}.{name}"
            raise Refused(f"it asks for {text[:200]}, which is refused")
        self.push(named)

    def named_on_stack(self, _: None) -> None:
        """Adds one of the names that are allowed, given by two texts."""
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def call(self, _: None) -> None:
        """Makes what a call of an allowed name with its arguments would."""
        given, named = self.pop(), self.pop()
        if type(named) is not _Name or named not in _CALLS or type(given) is not tuple:
            raise Refused("it calls what is no function")
        self.push(_CALLS[named](*given))

    def set_state(self, _: None) -> None:
        """Leaves out the state of a dictionary, which is about versions of modules."""
        self.pop()
        if type(self.stack[-1]) is not dict:
            raise Refused("it sets the state of something")

    def storage(self, _: None) -> None:
        """Makes a reference to a storage."""
        pid = self.pop()
        if type(pid) is not tuple or len(pid) not in (5, 6) or any(pid[5:]):
            raise Refused("a storage is not described as PyTorch does it")
        kind, named, key = pid[:3]
        if (type(kind), type(named), type(key)) != (str, _Name, str):
            raise Refused("a storage is not described as PyTorch does it")
        if kind != "storage" or named.name not in _DTYPES:
            raise Refused(f"unknown kind of storage {kind[:80]!r}")
        self.push(Storage(key, _DTYPES[named.name]))

    def remember(self, slot: int | None) -> None:
        """Keeps the last value of the stack, in the next slot if none is given."""
        self.memo[len(self.memo) if slot is None else slot] = self.stack[-1]


def _dictionary() -> dict[str, Any]:
    return {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Describes a tensor, if each number is one."""
    if (type(storage), type(shape), type(strides)) != (Storage, tuple, tuple):
        raise Refused("a tensor is not described as PyTorch does it")
    if max(len(shape), len(strides)) > budget.DIMENSIONS:
        raise Refused(f"a tensor has more than {budget.DIMENSIONS} dimensions")
    if any(
        type(number) is not int or not 0 <= number < 2**63
        for number in (offset, *shape, *strides)
    ):
        raise Refused("a tensor is not described as PyTorch does it")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _sizes(sizes: Any) -> tuple[Any, ...]:
    if type(sizes) is not tuple:
        raise Refused("a shape is not described as PyTorch does it")
    return sizes


# What is made in place of a call.
_CALLS: dict[_Name, Callable[..., Any]] = {
    _Name("collections", "OrderedDict"): _dictionary,
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_parameter"): _parameter,
    _Name("torch", "Size"): _sizes,
}


def _global(machine: _Machine, argument: str) -> None:
    # pickletools joins module and name by a space.
    machine.name(*argument.rsplit(" ", 1))


# What the operations of PyTorch's pickles, and their counterparts in protocol 4, do.
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    **dict.fromkeys(
        "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE".split(),
        _Machine.push,
    ),
    "MARK": _Machine.mark,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "SETITEM": lambda machine, _: machine.set_items(
        [machine.pop(), machine.pop()][::-1]
    ),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _Machine.named_on_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.storage,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "BINGET": lambda machine, slot: machine.push(machine.memo[slot]),
    "LONG_BINGET": lambda machine, slot: machine.push(machine.memo[slot]),
}
