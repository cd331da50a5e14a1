"""Fields of a config: each has its default, its explanation and its bounds."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Union

from jcm.runtime.errors import JcmError


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    The bounds hold for a number, and for every number of a sequence.

    Attributes:
      default: the value in the base config.
      doc: one sentence that says what the field is, without a full stop.
      least: the smallest allowed value; None for no bound.
      most: the largest allowed value; None for no bound.
      above: the value must be larger than this; None for no bound.
      below: the value must be smaller than this; None for no bound.
      some: whether a sequence must have at least one value.
    """

    default: Any
    doc: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    some: bool = False

    @property
    def is_numeric(self) -> bool:
        """Whether the default is a number, or a sequence of numbers."""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return bool(values) and all(map(_is_number, values))

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

    def check(self, name: str, value: Any) -> None:
        """Checks a value against the bounds.

        Args:
          name: the name of the field, for the error.
          value: the value.

        Raises:
          JcmError: if the value is out of bounds, not a number, or missing.
        """
        if self.some and not len(value):
            raise JcmError(f"{name}=() must have at least one value")
        values = value if isinstance(value, list | tuple) else (value,)
        texts = isinstance(self.default, tuple) and self.default
        if texts and all(isinstance(each, str) for each in self.default):
            for each in values:
                if not isinstance(each, str):
                    raise JcmError(
                        f"{name}={value} must be texts: put {each} in quotes, as in"
                        f" --{name}=\"('{each}',)\""
                    )
        for each in filter(_is_number, values):
            # Comparisons with NaN are false, so that NaN is out of all bounds.
            within = (
                math.isfinite(each)
                and (self.least is None or each >= self.least)
                and (self.most is None or each <= self.most)
                and (self.above is None or each > self.above)
                and (self.below is None or each < self.below)
            )
            if not within:
                raise JcmError(
                    f"{name}={value} must be {self.bounds or 'a finite number'}"
                )


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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float) -> str:
    """Returns a bound in words; 2^31 and 2^32 are bounds of steps and seeds."""
    exponent = math.log2(value) if value >= 2**16 else 0.5
    return f"2^{exponent:g}" if exponent.is_integer() else f"{value:g}"
