"""Pickles, read without running what they name.

A pickle is a program for a small machine with a stack. In general this machine can call
anything that the pickle names. The one here knows the operations for dictionaries,
lists, tuples, numbers and texts. In place of a call it calls one of the functions that
its caller has for the few names that are allowed. Each operation makes at most one
object, so that the memory of the result is bounded by the number of operations.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jcm.runtime import budget


class Name(NamedTuple):
    """What a pickle names, in place of the class or function."""

    module: str
    name: str


Calls = Mapping[Name, Callable[..., Any] | None]
"""What is called in place of a name; None for a name that is only passed on."""


@runtime_checkable
class Stateful(Protocol):
    """An object that a pickle can give a state."""

    def set_state(self, state: Any) -> None:
        """Takes the state."""


def _refuse_storage(_: Any) -> Any:
    raise budget.Refused("it uses BINPERSID, which is refused")


def read(
    file: io.BytesIO, calls: Calls, storage: Callable[[Any], Any] = _refuse_storage
) -> Any:
    """Reads one pickle, from the position of the file to the end of the pickle.

    Args:
      file: the content, whose length the caller bounds.
      calls: what is made in place of a call, by the names that are allowed.
      storage: makes an object of what describes one that is stored elsewhere.

    Raises:
      budget.Refused: if it names something else, has keys that are no texts, or too
        much.
      Exception: if it is damaged.
    """
    machine = _Machine(calls, storage)
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if operation.name == "STOP":
            return machine.pop()
        act = _ACTIONS.get(operation.name)
        if act is None:
            raise budget.Refused(f"it uses {operation.name}, which is refused")
        if count >= budget.PICKLE_OPERATIONS:
            raise budget.Refused("it does not end")
        act(machine, argument)
    raise budget.Refused("it does not end")


class _Machine:
    """The stack and the memory of a pickle while it is read."""

    def __init__(self, calls: Calls, storage: Callable[[Any], Any]) -> None:
        self._calls, self._storage = calls, storage
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
            raise budget.Refused(f"items are put into a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only the hash of a text cannot be chosen, nor take long to compute.
            if type(key) not in (str, bytes):
                raise budget.Refused(f"a key is a {type(key).__name__}")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        """Puts values into the list on the stack."""
        target = self.stack[-1]
        if type(target) is not list:
            raise budget.Refused(f"values are put into a {type(target).__name__}")
        target.extend(values)

    def tuple_of(self, count: int) -> None:
        """Makes a tuple of the last values of the stack."""
        if len(self.stack) < count:
            raise budget.Refused("its stack is empty")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(values)

    def name(self, module: Any, name: Any) -> None:
        """Adds one of the few names that are allowed."""
        named = Name(module, name)
        if type(module) is not str or type(name) is not str:
            raise budget.Refused("a name is no text")
        if named not in self._calls:
            text = f"{module}.{name}"
            raise budget.Refused(f"it asks for {text[:200]}, which is refused")
        self.push(named)

    def named_on_stack(self, _: None) -> None:
        """Adds one of the names that are allowed, given by two texts."""
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def call(self, _: None) -> None:
        """Makes what a call of an allowed name with its arguments would."""
        given, named = self.pop(), self.pop()
        call = self._calls[named] if type(named) is Name else None
        if call is None or type(given) is not tuple:
            raise budget.Refused("it calls what is no function")
        self.push(call(*given))

    def set_state(self, _: None) -> None:
        """Gives an object its state; that of a dictionary is left out."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Stateful):
            target.set_state(state)
        elif type(target) is not dict:
            raise budget.Refused("it sets the state of something")

    def persistent(self, _: None) -> None:
        """Makes an object of what describes one that is stored elsewhere."""
        self.push(self._storage(self.pop()))

    def remember(self, slot: int | None) -> None:
        """Keeps the last value of the stack, in the next slot if none is given."""
        self.memo[len(self.memo) if slot is None else slot] = self.stack[-1]


def _global(machine: _Machine, argument: str) -> None:
    # pickletools joins module and name by a space.
    machine.name(*argument.rsplit(" ", 1))


def _bytes(machine: _Machine, argument: str) -> None:
    # pickletools returns the bytes of Python 2 as a text.
    machine.push(argument.encode("latin1"))


# What the operations do.
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    **dict.fromkeys(
        "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES"
        " SHORT_BINBYTES".split(),
        _Machine.push,
    ),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _bytes),
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
    "BINPERSID": _Machine.persistent,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "BINGET": lambda machine, slot: machine.push(machine.memo[slot]),
    "LONG_BINGET": lambda machine, slot: machine.push(machine.memo[slot]),
}
