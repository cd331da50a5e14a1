"""The reference pages of the site: docstrings, config fields and configs."""

import functools
import html
import pathlib
import re
from collections.abc import Iterator

import griffe

from jcm import config as config_lib
from jcm import methods
from jcm.runtime.fields import Field

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIELDS, CONFIGS = "reference/config.md", "reference/configs.md"

# The rooms that users program with, in which constants need a docstring too, and the
# others.
PUBLIC = ("methods", "diffusion", "networks", "metrics")
_ROOMS = (
    *PUBLIC,
    *("model", "data", "training", "run", "pretrained", "runtime", "commands"),
)
# The sections of a config that differ between methods.
_BY_METHOD = ("loss", "teachers", "teacher_train")
_FIELDS_TEXT = """\
A config holds these fields. `jcm.config.base` returns them with their defaults, which
are the settings for CIFAR-10; a config sets those that differ, and a flag such as
`--config.train.batch_size=128` overrides one of them.
"""
_CONFIGS_TEXT = """\
The files in `configs/`. Append `:smoke` to a name to shrink it to a run of seconds.
Settings that several configs share are in `configs/_presets.py`.
"""


def pages() -> dict[str, str]:
    """Returns the Markdown of the reference by the names of its pages."""
    found = {f"reference/{room}.md": _room_page(room) for room in _ROOMS}
    found["reference/jcm.md"] = _face_page()
    found[FIELDS], found[CONFIGS] = _fields_page(), _configs_page()
    return found


@functools.cache
def package() -> griffe.Module:
    """Returns the package as its source states it; nothing is imported."""
    return griffe.load("jcm", search_paths=[ROOT])


def _public(parent: griffe.Object) -> Iterator[griffe.Object]:
    """Yields the public members that a module or a class defines itself."""
    for name, member in parent.members.items():
        if not name.startswith("_") and not member.is_alias:
            yield member


@functools.cache
def _exported() -> dict[str, str]:
    """Returns the names that `jcm` exports, by the paths of their objects.

    Rooms, which have pages of their own, are left out.
    """
    members = package().members.items()
    aliases = {name: each for name, each in members if each.is_alias}
    return {
        alias.final_target.path: name
        for name, alias in aliases.items()
        if not name.startswith("_")
        and alias.target_path.startswith("jcm.")
        and not alias.final_target.is_module
    }


def _face_page() -> str:
    """Returns the page of what `jcm` exports."""
    blocks = [
        f"::: {path}\n    options:\n"
        f"      heading: jcm.{name}\n      toc_label: {name}\n"
        for path, name in _exported().items()
    ]
    return "\n".join([f"# jcm\n\n{package().docstring.value}\n", *blocks])


def _room_page(room: str) -> str:
    """Returns the page of a room."""
    return "\n".join([f"# jcm.{room}\n", *_modules(room)])


def _modules(room: str) -> list[str]:
    """Returns a section for each module of a room."""
    blocks: list[str] = []
    waiting = [package()[room]]
    while waiting:
        module = waiting.pop(0)
        level, heading = (2, True) if blocks else (3, False)
        shown = [
            each
            for each in _public(module)
            if each.has_docstring and each.path not in _exported()
        ]
        names = [each.name for each in shown if not each.is_module]
        blocks.append(
            f"::: {module.path}\n    options:\n      members: {names}\n"
            f"      heading_level: {level}\n      show_root_heading: {heading}\n"
        )
        modules = [each for each in shown if each.is_module]
        waiting = sorted(modules, key=lambda module: module.name) + waiting
    return blocks


def _fields_page() -> str:
    """Returns the page of every config field."""
    blocks = ["# Config fields\n\n" + _FIELDS_TEXT]
    for title, anchor, rows in _sections():
        blocks.append(f"## {title} {{ #{anchor} }}\n")
        blocks.append("| field | default | meaning |\n|---|---|---|")
        for name, identifier, field in rows:
            bounds = f" ({field.bounds})" if field.bounds else ""
            meaning = html.escape(field.doc + bounds, quote=False)
            mark = f"{{ #{identifier} }}" if identifier else ""
            blocks.append(f"| `{name}`{mark} | `{field.default!r}` | {meaning} |")
        blocks.append("")
    blocks += ["## jcm.config\n", *_modules("config")]
    return "\n".join(blocks)


def _sections() -> list[tuple[str, str, list[tuple[str, str, Field]]]]:
    """Returns title, anchor and fields of every section of a config.

    Each field has its name in the section and its anchor. The sections `loss`,
    `teachers` and `teacher_train` differ between methods; a field that several methods
    have has its anchor where it is first.
    """
    sections, anchored = [], set()
    for section in dict.fromkeys(map(_section, config_lib.fields(config_lib.base()))):
        name = f"config.{section}" if section else "config"
        for method in methods.NAMES if section in _BY_METHOD else ("",):
            config = config_lib.base(method) if method else config_lib.base()
            rows = []
            for path, field in config_lib.fields(config).items():
                if _section(path) == section:
                    anchor = "" if path in anchored else f"config.{path}"
                    rows.append((path.rpartition(".")[2], anchor, field))
                    anchored.add(path)
            if rows and method:
                sections.append((f"{name}, method {method}", f"{name}-{method}", rows))
            elif rows:
                sections.append((name, name, rows))
    return sections


def _section(path: str) -> str:
    return path.rpartition(".")[0]


@functools.cache
def anchors() -> set[str]:
    """Returns the anchors of the page of the config fields."""
    sections = _sections()
    anchors = {anchor for _, anchor, _ in sections}
    return anchors | {each for *_, rows in sections for _, each, _ in rows if each}


def _configs_page() -> str:
    """Returns the page of the configs."""
    blocks = ["# Configs\n\n" + _CONFIGS_TEXT]
    for path in sorted((ROOT / "configs").glob("[a-z]*.py")):
        module = griffe.visit(path.stem, path, path.read_text())
        code = path.read_text().split('"""', 2)[2].strip()
        blocks.append(f"## {path.stem} {{ #{path.stem} }}\n")
        blocks.append(f"{module.docstring.value}\n\n```python\n{code}\n```\n")
    return "\n".join(blocks)


@functools.cache
def documented(name: str) -> str | None:
    """Returns the path of an object in the reference; None if it is not there.

    Args:
      name: a dotted name, such as `jcm.load`.
    """
    first, _, rest = name.partition(".")
    if first != "jcm" or not rest or re.search(r"(^|\.)_", rest):
        return None
    try:
        found = package()[rest]
        shown = found.has_docstring
    except (KeyError, griffe.AliasResolutionError):  # not there, or not of jcm
        return None
    path = found.canonical_path
    shown = shown and path.split(".")[1] in (*_ROOMS, "config")
    return path if shown else None


def undocumented(parent: griffe.Object) -> Iterator[str]:
    """Yields a line for each public name in a module or a class without a docstring.

    A method may have the docstring of a base class instead. The docstring of a class
    describes its fields.
    """
    for member in _public(parent):
        if member.is_attribute:
            needed = parent.is_module and member.path.split(".")[1] in PUBLIC
        else:
            bases = parent.mro() if parent.is_class else []
            needed = not any(
                member.name in base.members and base[member.name].has_docstring
                for base in bases
            )
        if needed and not member.has_docstring:
            yield f"{member.path} is public and has no docstring"
        if member.is_module or member.is_class:
            yield from undocumented(member)
