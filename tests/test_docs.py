"""What README, CONTRIBUTING and docs name exists: links, paths, modules, settings."""

import importlib
import re
import unicodedata

import pytest
from paths import ROOT

from jcm import config as config_lib
from jcm.commands import parsing
from jcm.model.editor import Editor

_PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
_FOLDERS = "configs|docs|jcm|launch|notebooks|tests"
# A command, such as "jcm train", or a script that passes its arguments on to one.
_COMMAND = re.compile(r"-m jcm\.main\b|launch/(?:local|gpu)\.sh|(?<![\w./-])jcm (?=\S)")
# Of configs/, told from other code spans by the data set that they begin with.
_CONFIG = re.compile(r"(?:cifar10|digits|folder|imagenet64|lsun256)_\w+")


def _code(text):
    """The code of a page: blocks, whose lines are joined at a backslash, and spans."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in _joined(block).splitlines()]
    return lines + [
        " ".join(span.split()) for span in re.findall(r"`([^`]+)`", outside)
    ]


def _joined(block):
    return re.sub(r"\\\n\s*", "", block)


def _anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = []
    for heading in re.findall(r"^#+ +(.+?) *$", outside, re.MULTILINE):
        kept = [
            letter
            for letter in heading.lower()
            if letter in "- _" or unicodedata.category(letter)[0] in "LMN"
        ]
        found.append("".join(kept).replace(" ", "-"))
    return found


def _problems(page, text):
    """Everything that a page names and that does not exist."""
    yield from _broken_links(page, text)
    for path in re.findall(rf"(?<![\w/.])(?:{_FOLDERS})/[\w./-]*", text):
        if not (ROOT / path.rstrip(".")).exists():
            yield f"no file {path}"
    for line in _code(text):
        for module in re.findall(r"-m (jcm[\w.]*)", line):
            if module != "jcm.main":
                yield f"no program {module}"
        for name in re.findall(r"(?<![\w/.-])jcm(?:\.[A-Za-z_]\w*)+", line):
            if not _resolves(name):
                yield f"no {name}"
        for name in re.findall(r"\bmodel\.edit\.(\w+)\(", line):
            if not hasattr(Editor, name):
                yield f"no edit {name}"
        if _CONFIG.fullmatch(line) and not (ROOT / f"configs/{line}.py").exists():
            yield f"no config {line}"
        yield from _unknown_settings(line)


def _broken_links(page, text):
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            yield f"no file behind the link {target}"
        elif anchor and anchor not in _anchors(file.read_text() if name else text):
            yield f"no heading behind the link {target}"


def _command(line):
    """The command that a line names; None without one, or if it stands for any."""
    found = _COMMAND.search(line)
    if not found:
        return None
    words = line[found.end() :].split()
    if not words or words[0].startswith("-"):
        return next((w.partition("=")[2] for w in words if "--mode=" in w), "train")
    names = [" ".join(words[:count]) for count in (2, 1)]
    several = words[0] in {name.split()[0] for name in parsing.COMMANDS}
    if words[0] == "help" or words[0].isupper() or (several and len(words) == 1):
        return None
    return next((name for name in names if name in parsing.COMMANDS), names[-1])


def _resolves(name):
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            for attribute in parts[length:]:
                found = getattr(found, attribute)
        except AttributeError:
            return False
        return True
    return False


def _unknown_settings(line):
    known = config_lib.base()
    for name in re.findall(r"(?<![\w/.])config((?:\.[a-z]\w*)+)", line):
        if name not in (".json", ".py") and not _is_field(known, name[1:]):
            yield f"no field config{name}"
    command = _command(line)
    if command and command not in parsing.COMMANDS:
        yield f"no command {command}"
    elif command or line.startswith("--"):
        commands = [command] if command else parsing.COMMANDS
        flags = {flag for each in commands for flag in parsing.flags_of(each)}
        flags |= {"--mode", "--version", "--print-completion"}
        for name in re.findall(r"(?<!\S)(--[a-z_-]+(?:\.[a-z_]+)*)", line):
            if not name.startswith("--config.") and name not in flags:
                yield f"no flag {name}"


def _is_field(config, name):
    for part in name.split("."):
        if part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize(
    "page", _PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_what_a_page_names_exists(page):
    assert list(_problems(page, page.read_text())) == []


@pytest.mark.parametrize(
    "page", _PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_python_on_a_page_compiles(page):
    blocks = re.findall(
        r"^( *)```python\n(.*?)^ *```", page.read_text(), re.DOTALL | re.M
    )
    for indent, block in blocks:
        lines = [line.removeprefix(indent) for line in block.splitlines()]
        compile("\n".join(lines), str(page), "exec")


def test_the_map_of_the_code_has_every_file():
    text = (ROOT / "docs/code.md").read_text()
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "jcm").rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert files and [name for name in files if f"`{name}`" not in text] == []


def test_the_readme_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    for page in _PAGES[1:]:
        assert f"]({page.relative_to(ROOT).as_posix()})" in text


@pytest.mark.parametrize(
    "text, problem",
    [
        ("[a](docs/none.md)", "no file behind the link docs/none.md"),
        ("[a](docs/data.md#none)", "no heading behind the link docs/data.md#none"),
        ("[a](#none)\n# One", "no heading behind the link #none"),
        ("see jcm/metrics/none.py.", "no file jcm/metrics/none.py."),
        ("`configs/none.py:smoke`", "no file configs/none.py"),
        ("```\npython -m jcm.none --x=1\n```", "no program jcm.none"),
        ("`python -m jcm.model`", "no program jcm.model"),
        ("`jcm.diffusion.edits.none`", "no jcm.diffusion.edits.none"),
        ("```python\njcm.none(1)\n```", "no jcm.none"),
        ("`model.edit.none(x)`", "no edit none"),
        ("`digits_none`", "no config digits_none"),
        ("`config.train.none`", "no field config.train.none"),
        ("`--config.none=1`", "no field config.none"),
        ("`--none=1`", "no flag --none"),
        ("```\npython -m jcm.main \\\n    --none=1\n```", "no flag --none"),
        ("```\nbash launch/local.sh --topology=v5e:4x4\n```", "no flag --topology"),
        ("`python -m jcm.main --mode=edit --host=x`", "no flag --host"),
        ("`jcm evaluate --task=inpaint`", "no flag --task"),
        ("`jcm none --task=inpaint`", "no command none"),
    ],
)
def test_what_does_not_exist_is_found(text, problem):
    assert problem in _problems(ROOT / "README.md", text)


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/data.md#imagenet-6464) [b](#two-words)\n## Two words",
        "```\njcm demo x --port=1\n```\n`jcm benchmark speed --topology=v5e:4x4`",
        "`jcm`, `jcm help`, `jcm COMMAND --help`, `jcm benchmark`, `--port`",
        "`python -m jcm.main --config=configs/digits_cd.py:smoke --mode=sample`",
        "`jcm.load(x)`, `jcm/model/`, `config.json`, `--config.train.batch_size=1`",
    ],
)
def test_what_exists_is_not_a_problem(text):
    assert list(_problems(ROOT / "README.md", text)) == []
