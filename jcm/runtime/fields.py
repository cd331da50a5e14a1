"""Fields of a config: each has its default, its explanation and its bounds."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Union

from jcm.runtime.errors import JcmError, shown

KINDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    tuple: "values in brackets",
    str: "a string",
}
"""What the values of a type are called."""


# Beyond these, a number becomes 0 or infinite, or overflows, in a program of JAX.
_LEAST_FLOAT, _MOST_FLOAT, _MOST_WHOLE = 1.2e-38, 3.4e38, 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    The bounds hold for a number, and for every number of a sequence. Numbers must fit
    into 32 bits.

    Attributes:
      default: the value in the base config; None for a field that may be left open.
      doc: one sentence that says what the field is, without a full stop.
      least: the smallest allowed value; None for no bound.
      most: the largest allowed value; None for no bound.
      above: the value must be larger than this; None for no bound.
      below: the value must be smaller than this; None for no bound.
      some: whether a sequence must have at least one value.
      kinds: the types of the value, or of each value of a sequence; () for the type of
        the default, or of its first value.
    """

    default: Any
    doc: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    some: bool = False
    kinds: tuple[type, ...] = ()

    @property
    def types(self) -> tuple[type, ...]:
        """The types of the value, or of each value of a sequence."""
        first = self.default[:1] if isinstance(self.default, tuple) else [self.default]
        return self.kinds or tuple(map(type, first))

    @property
    def is_numeric(self) -> bool:
        """Whether the value is a number, or a sequence of numbers."""
        return int in self.types or float in self.types

    @property
    def bounds(self) -> str:
        """The bounds in words, such as "at least 0, below 1"; empty without any."""
        named = {
            "at least": self.least,
            "at most": self.most,
            "above": self.above,
            "below": self.below,
        }
        return ", ".join(f"{k} {_short(v)}" for k, v in named.items() if v is not None)

    def left_open(self, meaning: str) -> "Field":
        """Returns the same field with None as its default, for a single value.

        Args:
          meaning: what None does, for the explanation.
        """
        doc = f"{self.doc}; None {meaning}"
        return dataclasses.replace(self, default=None, doc=doc, kinds=self.types)

    def check(self, name: str, value: Any) -> None:
        """Checks a value against the types and the bounds.

        Args:
          name: the name of the field, for the error.
          value: the value.

        Raises:
          JcmError: if the value is out of bounds, of another type, or missing.
        """
        if value is None and self.default is None:
            return
        many = isinstance(value, list | tuple)
        if many != isinstance(self.default, tuple):
            kind = KINDS[tuple if not many else self.types[0]]
            raise JcmError(f"{name}={value!r} must be {kind}")
        if self.some and not value:
            raise JcmError(f"{name}=() must have at least one value")
        for each in value if many else (value,):
            if not any(_is_of(each, kind) for kind in self.types):
                raise JcmError(self._of_another_type(name, value, each))
            if isinstance(each, str) and not _can_be_stored(each):
                raise JcmError(
                    f"{name}={shown(each)} is not Unicode, and cannot be recorded:"
                    " rename it"
                )
            if _is_of(each, float) and not self._within(each):
                raise JcmError(
                    f"{name}={value} must be {self.bounds or 'a finite number'}"
                )
            if _is_of(each, float) and not self._fits(each):
                raise JcmError(
                    f"{name}={value} does not fit into 32 bits: use another number"
                )

    def _of_another_type(self, name: str, value: Any, wrong: Any) -> str:
        """Returns the error for a value, or a value of a sequence, of another type."""
        if self.types == (str,) and isinstance(self.default, tuple):
            return (
                f"{name}={value} must be strings: put {wrong} in quotes, as in"
                f" --{name}=\"('{wrong}',)\""
            )
        kind = " or ".join(KINDS[each] for each in self.types)
        each = f", and {wrong!r} is not" if isinstance(self.default, tuple) else ""
        return f"{name}={value!r} must be {kind}{each}"

    def _within(self, value: float) -> bool:
        # Comparisons with NaN are false, so that NaN is out of all bounds. A whole
        # number may be too large for `math.isfinite`.
        return (
            -math.inf < value < math.inf
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _fits(self, value: float) -> bool:
        """Returns whether 32 bits can hold a number; 0 and bounds of the field can."""
        if float not in self.types:
            most = max(self.most or 0, self.below or 0, _MOST_WHOLE)
            return abs(value) <= most
        return value == 0 or _LEAST_FLOAT <= abs(value) <= _MOST_FLOAT


# A section of a config: fields and smaller sections by name.
Section = Mapping[str, Union[Field, "Section"]]


def flatten(section: Section, prefix: str = "") -> dict[str, Field]:
    """Returns the fields of a section by their dotted names."""
    flat: dict[str, Field] = {}
    for name, entry in section.items():
        if isinstance(entry, Field):
            flat[f"{prefix}{name}"] = entry
        else:
            flat |= flatten(entry, f"{prefix}{name}.")
    return flat


def _is_of(value: Any, kind: type) -> bool:
    """Returns whether a value has a type; True is no number, and an int is a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _can_be_stored(text: str) -> bool:
    """Returns whether a text can be written as UTF-8; some names of files cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: float) -> str:
    """Returns a bound in words; 2^31 and 2^32 are bounds of steps and seeds."""
    exponent = math.log2(value) if value >= 2**16 else 0.5
    return f"2^{exponent:g}" if exponent.is_integer() else f"{value:g}"
