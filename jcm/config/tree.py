"""A config: the values of all fields, as a tree of sections."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from jcm.config import tables
from jcm.runtime import similar
from jcm.runtime.errors import JcmError, printable, shown
from jcm.runtime.fields import Field, Section
from jcm.runtime.fields import flatten as flatten_fields

# An error shows at most this many characters of a name that no field has.
_LONGEST_NAME = 100


class UnknownField(AttributeError, KeyError):
    """A config has no field of a name; the message guesses which one was meant.

    It is both of the errors that Python has for this, since a field can be named as an
    attribute and as a key.
    """

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would put it in quotes


class Config(ConfigDict):
    """A config or a section of it; the error for a wrong name guesses the right one."""

    def __getattr__(self, attribute: str) -> Any:
        # ConfigDict replaces the error of a key by one that quotes it.
        if attribute not in self:
            raise self._unknown(attribute)
        return self[attribute]

    def __getitem__(self, key: str) -> Any:
        section, _, rest = str(key).partition(".")
        if section not in self:
            raise self._unknown(str(key))
        return super().__getitem__(section)[rest] if rest else super().__getitem__(key)

    def __setattr__(self, attribute: str, value: Any) -> None:
        self._check_known(attribute)
        super().__setattr__(attribute, value)

    def __setitem__(self, key: str, value: Any) -> None:
        self._check_known(key)
        super().__setitem__(key, _plain(value))

    def _check_known(self, name: str) -> None:
        if self.is_locked and name not in self:
            raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownField:
        """Returns the error for a name that no field has."""
        if name.startswith("_"):  # libraries look for special methods
            return UnknownField(name)
        known = list(flatten(self))
        meant = similar.fields(name, known) or similar.misspelt(name, known)
        if meant:
            return UnknownField(
                f"unknown field {name}: did you mean {' or '.join(meant)}?"
            )
        return UnknownField(
            f"unknown field {name}: use one of {', '.join(self.keys())}"
        )


def _plain(value: Any) -> Any:
    """Returns values of NumPy and JAX as those of Python, and a path as a string."""
    if isinstance(value, ConfigDict):  # which guesses what other attributes mean
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        value = value.tolist()
        return tuple(value) if isinstance(value, list) else value
    return value


def base(method: str = "cd") -> ConfigDict:
    """Returns every field with its default; the defaults are those for CIFAR-10.

    Args:
      method: name of the training method, which has its own fields in `loss` and
        `teachers`.

    Raises:
      JcmError: if there is no such method.
    """
    return _defaults(tables.sections(method)).lock()


def _defaults(section: Section) -> ConfigDict:
    config = Config()
    for name, entry in section.items():
        if not isinstance(entry, Field):
            config[name] = _defaults(entry)
        elif entry.default is None:
            config[name] = config_dict.placeholder(entry.types[0])
        else:
            config[name] = entry.default
    return config


def fields(config: ConfigDict) -> dict[str, Field]:
    """Returns the fields of a config by dotted name, such as "optim.learning_rate".

    The default of a field is its value in `base(config.method)`.
    """
    return flatten_fields(tables.sections(config.method))


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the config that `to_dict` gave, also if it was stored as JSON.

    Raises:
      JcmError: if a field is unknown, or has a value of another type or out of bounds.
    """
    method = values.get("method")
    if not isinstance(method, str):
        raise JcmError(f"config.method={shown(method)} must be a string")
    config = base(method)
    with config.ignore_type():
        _update(config, values, fields(config), "")
    return config


def _update(
    config: ConfigDict, values: Any, known: Mapping[str, Field], prefix: str
) -> None:
    """Sets the fields of a config or a section, which begin with `prefix`."""
    if not isinstance(values, Mapping):
        section = f"config.{prefix}".rstrip(".")
        raise JcmError(f"{section}={shown(values)} must be a section with fields")
    for name, value in values.items():
        full = f"{prefix}{name}"
        if name not in config:
            raise JcmError(f"config.{printable(full, _LONGEST_NAME)} is unknown")
        if isinstance(config[name], ConfigDict):
            _update(config[name], value, known, f"{full}.")
        else:
            known[full].check(f"config.{full}", value)
            # JSON stores tuples as lists.
            config[name] = tuple(value) if isinstance(value, list) else value


def flatten(tree: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields by dotted name, with values as JSON gives them back."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:  # JSON has no tuples
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(
    before: ConfigDict,
    now: ConfigDict,
    *,
    only: Sequence[str] = ("",),
    ignore: Sequence[str] = (),
) -> list[tuple[str, Any, Any]]:
    """Returns (field, value before, value now) of each field with another value.

    Args:
      before: a config.
      now: a config.
      only: the fields and sections to compare; by default all.
      ignore: fields and sections of these that may differ.
    """
    theirs, ours = flatten(before), flatten(now)

    def within(name: str, places: Sequence[str]) -> bool:
        return any(
            place in ("", name) or name.startswith(f"{place}.") for place in places
        )

    return [
        (name, theirs.get(name), ours.get(name))
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
        and within(name, only)
        and not within(name, ignore)
    ]
