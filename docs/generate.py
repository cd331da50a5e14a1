"""Writes the sources of the site to build/docs, from which mkdocs builds it.

python docs/generate.py && mkdocs build --strict -f docs/mkdocs.yml

The pages are those of docs/, README.md, CONTRIBUTING.md, SECURITY.md, launch/README.md,
the notebooks, and the reference, which is generated from docstrings, config fields and
configs. Links between files of the repository become links between pages, names of the
code become links to the reference, and TeX becomes MathML, which browsers show without
a script.

The program fails if a public name has no docstring, or a link leads nowhere.
"""

import configparser
import functools
import html
import json
import pathlib
import posixpath
import re
import shutil
import sys
import unicodedata

import reference
from latex2mathml import converter
from reference import ROOT

_TARGET = ROOT / "build/docs"

# The files outside docs/ that become pages.
_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "launch/README.md": "launch.md",
}
# README has a picture in place of a heading.
_START = "---\nhide: [navigation]\n---\n\n# Consistency models in JAX\n\n"

# What is changed or left alone in a page. The first alternative that matches counts.
_TOKEN = re.compile(
    r"""
    (?P<block>^[ ]*```.*?^[ ]*```)
    | (?P<label>\[[^\[\]]*`[^`]+`[^\[\]]*(?=\]\())    # the text of a link
    | \[(?P<file>[\w/]+\.md)(?=\]\()                 # the name of the file it leads to
    | `(?P<code>[^`]+)`
    | \$\$(?P<display>.+?)\$\$
    | \$(?P<inline>\S|\S(?:[^$\n]|\n(?!\n))*?\S)\$
    | !\[(?P<external_image>[^]]*)\]\(https?://[^)]*\)
    | \]\((?P<link>[^)\s]+)\)
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


def pages() -> dict[str, str]:
    """Returns the Markdown of every page by its name in build/docs.

    Raises:
      ValueError: names the problems of all pages.
    """
    sources = dict(_PAGES)
    for path in sorted((ROOT / "docs").glob("*.md")):
        sources[f"docs/{path.name}"] = path.name
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        sources[f"notebooks/{path.name}"] = f"notebooks/{path.stem}.md"
    found, problems = {}, list(reference.undocumented(reference.package()))
    for source, name in sources.items():
        path = ROOT / source
        text = _notebook(path) if path.suffix == ".ipynb" else path.read_text()
        found[name] = Converter(source, name, sources, problems)(text)
    found |= reference.pages()
    if problems:
        raise ValueError("\n".join(problems))
    return found


class Converter:
    """Converts the Markdown of one file of the repository to that of a page."""

    def __init__(
        self, source: str, name: str, names: dict[str, str], problems: list[str]
    ):
        """Remembers which file becomes which page.

        Args:
          source: the path of the file in the repository.
          name: the name of the page.
          names: the names of all pages by the paths of their files.
          problems: takes the problems that are found.
        """
        self._source, self._name, self._names = source, name, names
        self._problems = problems

    def __call__(self, text: str) -> str:
        """Returns the Markdown of the page."""
        converted = _TOKEN.sub(self._token, text)
        return converted if self._name != "index.md" else _START + converted

    def _token(self, match: re.Match) -> str:
        kind, text = match.lastgroup, match[match.lastgroup]
        if kind == "code":
            return self._code(text)
        if kind in ("display", "inline"):
            return self._formula(text, kind)
        if kind == "file":
            return f"[{_title(ROOT / posixpath.dirname(self._source) / text)}"
        if kind == "external_image":
            return text
        if kind == "link":
            return f"]({self._link(text)})"
        return match[0]

    def _link(self, link: str) -> str:
        """Returns the target of a link on the site."""
        path, _, anchor = link.partition("#")
        if not path or ":" in path:
            return link
        path = posixpath.join(posixpath.dirname(self._source), path)
        path = posixpath.normpath(path)
        if not (ROOT / path).exists():
            self._problems.append(f"{self._source}: no file behind the link {link}")
        name = self._names.get(path)
        if name is None and not path.startswith("docs/"):
            return f"{_repository()}/blob/main/{path}"
        return self._relative(name or path.removeprefix("docs/"), anchor)

    def _relative(self, name: str, anchor: str) -> str:
        path = posixpath.relpath(name, posixpath.dirname(self._name))
        return f"{path}#{anchor}" if anchor else path

    def _code(self, code: str) -> str:
        """Returns a span of code, as a link if the reference has what it names."""
        target = self._target(code)
        if target is None:
            return f"`{code}`"
        breakable = re.sub(r"([./])(?=\w)", r"\1<wbr>", html.escape(code))
        return f"[<code>{breakable}</code>]{target}"

    def _target(self, code: str) -> str | None:
        """Returns where a span of code leads to in the reference, if anywhere."""
        path = re.fullmatch(r"(jcm(?:/\w+)+)(?:/|\.py)", code)
        name = path[1].replace("/", ".").removesuffix(".__init__") if path else code
        if found := reference.documented(name.split("(")[0]):
            return f"[{found}]"
        field = re.fullmatch(r"(?:--)?(config\.[\w.]+)(?:=.*)?", code)
        if field and field[1] in reference.anchors():
            return f"({self._relative(reference.FIELDS, field[1])})"
        if code in self._names:
            return f"({self._relative(self._names[code], '')})"
        config = re.fullmatch(r"(?:configs/)?([a-z]\w+)(?:\.py)?", code)
        if config and (ROOT / f"configs/{config[1]}.py").exists():
            return f"({self._relative(reference.CONFIGS, config[1])})"
        return None

    def _formula(self, tex: str, display: str) -> str:
        """Returns a formula as MathML."""
        block = display == "display"
        found = converter.convert(tex.strip(), display="block" if block else "inline")
        for unknown in re.findall(r"\\[A-Za-z]+", found):
            self._problems.append(f"{self._source}: no TeX command {unknown}")
        found = _STYLED.sub(_styled, found)
        # Without the span, Markdown would end a paragraph before a formula that begins
        # a line.
        return found if block else f"<span>{found}</span>"


def _title(path: pathlib.Path) -> str:
    """Returns the heading of a file, or its name if it has none."""
    text = path.read_text() if path.exists() else ""
    heading = re.match(r"# (.+)", text)
    return heading[1] if heading else path.name


_STYLED = re.compile(r'<mi mathvariant="(script|double-struck|bold)">(\w)</mi>')


def _styled(match: re.Match) -> str:
    """Returns a letter of some style as a character, since browsers know no styles."""
    case = "CAPITAL" if match[2].isupper() else "SMALL"
    name = f"{match[1].upper()} {case} {match[2].upper()}"
    try:
        letter = unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:  # Unicode had some of the letters before the others.
        letter = unicodedata.lookup(name)
    return f"<mi>{letter}</mi>"


def _notebook(path: pathlib.Path) -> str:
    """Returns a notebook as Markdown, without outputs."""
    cells = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        cells.append(
            text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        )
    return "\n\n".join(cells)


@functools.cache
def _repository() -> str:
    """Returns the address of the repository."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["metadata"]["url"]


def main() -> None:
    """Writes all pages and copies the pictures."""
    try:
        found = pages()
    except ValueError as error:
        sys.exit(str(error))
    shutil.rmtree(_TARGET, ignore_errors=True)
    for name, text in found.items():
        path = _TARGET / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in (ROOT / "docs").iterdir():
        if path.suffix in (".css", ".png", ".woff2"):
            shutil.copy(path, _TARGET)


if __name__ == "__main__":
    main()
