"""What README, CONTRIBUTING and docs name exists: paths, modules, settings, links.

mkdocs checks the headings behind links, when `.ci/run` builds the site.
"""

import functools
import importlib
import re

import generate
import griffe
import pytest
import reference
from paths import ROOT

from jcm import config as config_lib
from jcm import methods
from jcm.commands import parsing
from jcm.model.editor import Editor

_PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "launch/README.md",
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


def _problems(text):
    """Everything that a page names and that does not exist, except links."""
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


@functools.cache
def _configs():
    return [config_lib.base(method) for method in methods.NAMES]


def _unknown_settings(line):
    for name in re.findall(r"(?<![\w/.])config((?:\.[a-z]\w*)+)", line):
        if name not in (".json", ".py") and not any(
            _is_field(known, name[1:]) for known in _configs()
        ):
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
    assert list(_problems(page.read_text())) == []


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
        # The first line of a method's file says what it is.
        if path.name != "__init__.py"
        and not (path.parent.name == "methods" and "RECIPE" in path.read_text())
    ]
    assert files and [name for name in files if f"`{name}`" not in text] == []


def test_the_readme_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    for page in _PAGES[1:]:
        assert f"]({page.relative_to(ROOT).as_posix()})" in text


@pytest.mark.parametrize(
    "text, problem",
    [
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
    assert problem in _problems(text)


@pytest.mark.parametrize(
    "text",
    [
        "```\njcm demo x --port=1\n```\n`jcm benchmark speed --topology=v5e:4x4`",
        "`jcm`, `jcm help`, `jcm COMMAND --help`, `jcm benchmark`, `--port`",
        "`python -m jcm.main --config=configs/digits_cd.py:smoke --mode=sample`",
        "`jcm.load(x)`, `jcm/model/`, `config.json`, `--config.train.batch_size=1`",
    ],
)
def test_what_exists_is_not_a_problem(text):
    assert list(_problems(text)) == []


def test_the_pages_of_the_site_have_no_problems():
    pages = generate.pages()
    assert {"index.md", "data.md", "reference/jcm.md"} < pages.keys()


def _converted(source, text):
    problems = []
    names = {"README.md": "index.md", "docs/data.md": "data.md", source: "here/page.md"}
    page = generate.Converter(source, "here/page.md", names, problems)(text)
    return page, problems


@pytest.mark.parametrize(
    "source, text, page",
    [
        ("docs/a.md", "[a](data.md#b) [c](#d)", "[a](../data.md#b) [c](#d)"),
        ("docs/a.md", "[README](../README.md#b)", "[README](../index.md#b)"),
        ("a.md", "![a](docs/demo.png)", "![a](../demo.png)"),
        ("a.md", "[docs/data.md](docs/data.md)", "[Data](../data.md)"),
        ("a.md", "[![Colab](https://x.y/z.svg)](https://x.y)", "[Colab](https://x.y)"),
        ("a.md", "```\n[a](b) `jcm.load` $x$\n```", "```\n[a](b) `jcm.load` $x$\n```"),
        (
            "a.md",
            "`jcm.load` [`jcm.load`](docs/data.md)",
            "[<code>jcm.<wbr>load</code>][jcm.model.loading.load]"
            " [`jcm.load`](../data.md)",
        ),
        (
            "a.md",
            "`jcm/diffusion/ode.py`",
            "[<code>jcm/<wbr>diffusion/<wbr>ode.<wbr>py</code>][jcm.diffusion.ode]",
        ),
        (
            "a.md",
            "`--config.seed=1` `digits_cd`",
            "[<code>--config.<wbr>seed=1</code>](../reference/config.md#config.seed)"
            " [<code>digits_cd</code>](../reference/configs.md#digits_cd)",
        ),
    ],
)
def test_a_file_becomes_a_page(source, text, page):
    assert _converted(source, text) == (page, [])


def test_a_formula_becomes_mathml():
    page, problems = _converted("a.md", r"With $\mathcal N$, costs in `$US`:")
    assert not problems and "<mi>\N{MATHEMATICAL SCRIPT CAPITAL N}</mi>" in page
    assert page.endswith("</math></span>, costs in `$US`:")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("[a](docs/none.md)", "a.md: no file behind the link docs/none.md"),
        (r"$\nonesuch$", r"a.md: no TeX command \nonesuch"),
    ],
)
def test_a_broken_page_is_found(text, problem):
    assert _converted("a.md", text)[1] == [problem]


def test_public_names_need_a_docstring(tmp_path):
    (tmp_path / "house/methods").mkdir(parents=True)
    (tmp_path / "house/__init__.py").write_text('"""Text."""\n')
    (tmp_path / "house/methods/__init__.py").write_text(
        '"""Text."""\n'
        "A = 1\nB = 2\n"
        '"""Text."""\n'
        "_C = 3\n"
        'class D:\n    """Text."""\n    def f(self):\n        """Text."""\n'
        "class E(D):\n    def f(self): ...\n    def g(self): ...\n"
    )
    package = griffe.load("house", search_paths=[tmp_path])
    assert [line.split()[0] for line in reference.undocumented(package)] == [
        "house.methods.A",
        "house.methods.E",
        "house.methods.E.g",
    ]
