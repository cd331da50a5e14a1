import ast
import configparser
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ["launch/local.sh", "launch/test.sh", "launch/setup.sh", ".ci/run"]

# Stands in for the interpreter of an environment: says what it is asked to run, and
# notes what it is asked to install.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
*"pip install"*) echo "$@" >>"$(dirname "$0")/installed" ;;
*"-m pip"* | *"import jcm.main"*) ;;
*" -m "* | "-m "*) printf '%s\\n' "$PWD" "$@" ;;
*) exec "{real}" "$@" ;;
esac
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path):
    """What the scripts need of the repository, at a path with a blank in it."""
    clone = tmp_path / "a clone"
    shutil.copytree(ROOT / "launch", clone / "launch")
    shutil.copy(ROOT / "setup.cfg", clone)
    (clone / "configs").mkdir()
    (clone / "configs" / "a.py").touch()
    return clone


@pytest.fixture
def environment(tmp_path):
    """An environment to be active whose Python is the fake one."""
    fake = FAKE_PYTHON.format(real=sys.executable)
    executable(tmp_path / "my env" / "bin" / "python", fake)
    return tmp_path / "my env"


def launch(script, *args, cwd, path=os.environ["PATH"], **variables):
    variables = {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        [shutil.which("bash"), str(script), *args],
        cwd=cwd,
        env={"PATH": str(path), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def tools(folder):
    """A PATH with what the scripts call, but no Python."""
    folder.mkdir()
    for name in ("basename", "cat", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_bash(script):
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", ["local.sh", "test.sh"])
def test_help_needs_no_python_and_makes_nothing(script, clone, tmp_path):
    path = tools(tmp_path / "tools")
    done = launch(clone / "launch" / script, "--help", cwd=tmp_path, path=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: launch/{script}")
    assert not (clone / ".venv").exists()


def assert_one_line(done, *parts):
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    for part in parts:
        assert part in done.stderr


def test_without_python_one_line_says_what_to_do(clone, tmp_path):
    path = tools(tmp_path / "tools")
    # A Python that is too old, or cannot make environments, is no Python.
    executable(path / "python3", "#!/bin/sh\necho no such module >&2\nexit 1\n")
    done = launch(clone / "launch" / "local.sh", "--workdir=w", cwd=clone, path=path)
    assert_one_line(done, "local.sh: no Python 3.11 or newer", "set PYTHON")
    assert not (clone / ".venv").exists()


def test_a_wrong_python_variable_is_named(clone):
    done = launch(clone / "launch" / "test.sh", cwd=clone, PYTHON="/no/python")
    assert_one_line(done, "PYTHON=/no/python is not")


def test_a_broken_active_environment_is_named(clone, tmp_path):
    script = clone / "launch" / "test.sh"
    done = launch(script, cwd=clone, CONDA_PREFIX=tmp_path / "gone")
    assert_one_line(done, "gone", "deactivate")


def test_python_is_the_first_that_suits(clone, tmp_path):
    path = tools(tmp_path / "tools")
    executable(path / "python3", "#!/bin/sh\nexit 1\n")
    executable(path / "python3.13", "#!/bin/sh\nexit 127\n")
    for name in ("python3.12", "python3.11"):
        (path / name).symlink_to(sys.executable)
    ask = executable(tmp_path / "ask", f'. "{clone}/launch/setup.sh"; find_python\n')
    assert launch(ask, cwd=tmp_path, path=path).stdout == "python3.12\n"
    done = launch(ask, cwd=tmp_path, path=path, PYTHON=sys.executable)
    assert done.stdout == f"{sys.executable}\n"


def test_it_installs_only_what_is_not_there_yet(clone, environment, tmp_path):
    log = environment / "bin" / "installed"

    def run(script, **variables):
        log.unlink(missing_ok=True)
        done = launch(
            clone / "launch" / script,
            "--workdir=w",
            cwd=tmp_path,
            VIRTUAL_ENV=environment,
            **variables,
        )
        assert done.returncode == 0, done.stderr
        assert ("installing" in done.stderr) == log.exists()
        return log.read_text().split()[-1] if log.exists() else None

    assert run("local.sh") == "."
    assert run("local.sh") is None
    assert run("test.sh") == ".[test]"
    assert run("test.sh") is None
    assert run("local.sh") is None
    assert run("local.sh", JCM_EXTRAS="cuda") == ".[cuda]"
    assert run("test.sh", JCM_EXTRAS="cuda") is None
    with (clone / "setup.cfg").open("a") as file:
        file.write("# changed\n")
    assert run("test.sh") == ".[test]"
    assert run("local.sh") is None
    # The environment now belongs to another clone: it must be that one's code.
    clone.rename(clone.with_name("another clone"))
    clone = clone.with_name("another clone")
    assert run("local.sh") == "."


def test_a_failed_installation_is_tried_again(clone, environment):
    fake = environment / "bin" / "python"
    works = fake.read_text()
    fake.write_text(works.replace("*) echo", "*) exit 1 ; echo", 1))
    script = clone / "launch" / "test.sh"
    done = launch(script, cwd=clone, VIRTUAL_ENV=environment)
    assert done.returncode == 1 and "the installation failed" in done.stderr
    fake.write_text(works)
    done = launch(script, cwd=clone, VIRTUAL_ENV=environment)
    assert done.returncode == 0 and "installing" in done.stderr


def test_main_runs_where_the_caller_is_and_finds_the_configs(
    clone, environment, tmp_path
):
    (tmp_path / "mine.py").touch()

    def run(*args):
        script = clone / "launch" / "local.sh"
        done = launch(script, *args, cwd=tmp_path, VIRTUAL_ENV=environment)
        folder, *command = done.stdout.splitlines()
        assert folder == str(tmp_path)
        assert command[:3] == ["-P", "-m", "jcm.main"]
        return command[3:]

    there = f"{clone}/configs/a.py"
    assert run("--config=configs/a.py:smoke", "--workdir=configs/a.py") == [
        f"--config={there}:smoke",
        "--workdir=configs/a.py",
    ]
    assert run("--config", "configs/a.py") == ["--config", there]
    assert run("--config=mine.py", "--a=b c") == ["--config=mine.py", "--a=b c"]
    assert run("--config=none.py") == ["--config=none.py"]


def test_tests_run_in_the_repository_with_the_callers_arguments(
    clone, environment, tmp_path
):
    script = clone / "launch" / "test.sh"
    done = launch(script, "-k", "a b", cwd=tmp_path, VIRTUAL_ENV=environment)
    assert done.stdout.splitlines() == [str(clone), "-m", "pytest", "-k", "a b"]


def setup_cfg():
    # Inline comments stay, to be looked at.
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_installed():
    named = setup_cfg()["options"]["packages"].split()
    folders = {path.parent for path in (ROOT / "jcm").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(named) == found | {"jcm.configs"}
    assert all((folder / "__init__.py").exists() for folder in folders)
    # Without it, `jcm.configs` cannot be imported from an editable installation.
    assert (ROOT / "configs" / "__init__.py").exists()


def test_every_dependency_has_a_lower_bound_and_a_reason():
    parser = setup_cfg()
    lines = parser["options"]["install_requires"].splitlines()
    for extra in ("demo", "test"):
        lines += parser["options.extras_require"][extra].splitlines()
    for line in filter(None, lines):
        if line.startswith("jcm["):  # another list of these
            continue
        requirement, _, reason = line.partition("#")
        assert ">=" in requirement and reason.strip(), line


def test_nothing_imports_tensorflow_or_torch():
    # clu's two modules import TensorFlow.
    banned = {"tensorflow", "torch", "clu.metric_writers", "clu.periodic_actions"}
    sources = [*(ROOT / "jcm").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert not {name, name.partition(".")[0]} & banned, f"{source}: {name}"


def test_every_module_imports_without_a_warning():
    program = """
import importlib, pkgutil, sys
import jcm
for module in pkgutil.walk_packages(jcm.__path__, "jcm."):
    importlib.import_module(module.name)
print(*{"tensorflow", "torch"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
