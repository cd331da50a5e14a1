import ast
import configparser
import os
import subprocess
import sys

import pytest
from scripts import (
    ROOT,
    SLEEP,
    assert_one_line,
    executable,
    files,
    gpus,
    launch,
    lines_of,
    make_clone,
    make_environment,
    tools,
    tpu,
    words,
)

from jcm import config as config_lib

LAUNCH = sorted(path for path in (ROOT / "launch").iterdir() if path.is_file())
RUN = [path.name for path in LAUNCH if os.access(path, os.X_OK)]
SCRIPTS = [f"launch/{name}" for name in [*RUN, "common.sh", "setup.sh"]] + [".ci/run"]


@pytest.fixture
def clone(tmp_path):
    return make_clone(tmp_path / "a clone")  # The path contains a space.


@pytest.fixture
def environment(tmp_path):
    return make_environment(tmp_path / "my env")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_bash(script):
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", RUN)
def test_help_needs_no_python_and_makes_nothing(script, clone, tmp_path):
    path = tools(tmp_path / "tools")
    before = files(tmp_path)
    for flags in (["--help"], ["-h"], []):
        if script == "test.sh" and not flags:
            continue  # It would run the tests.
        done = launch(clone / "launch" / script, *flags, cwd=tmp_path, path=path)
        assert lines_of(done)[0].startswith(f"usage: launch/{script}")
        assert "\nDRY_RUN=1 " in done.stdout
        assert files(tmp_path) == before


def test_the_readme_names_every_script():
    readme = (ROOT / "launch" / "README.md").read_text()
    for script in {*RUN} - {"test.sh", "worker.sh"}:
        assert f"launch/{script}" in readme


def test_a_dry_run_prints_the_commands_and_makes_nothing(clone, tmp_path):
    path = tools(tmp_path / "tools")
    (path / "python3").symlink_to(sys.executable)
    before = files(tmp_path)

    def run(script, *flags, **variables):
        script = clone / "launch" / script
        variables = {"DRY_RUN": 1, **variables}
        done = launch(script, *flags, cwd=tmp_path, path=path, **variables)
        assert files(tmp_path) == before
        return lines_of(done)

    python = f"'{clone}/.venv/bin/python'"
    venv = f"python3 -m venv --clear '{clone}/.venv'"
    install = f"{python} -m pip install -q --no-compile --disable-pip-version-check -e"
    main = f"{python} -P -m jcm.main --config=configs/a.py"
    flags = ("--config=configs/a.py", "--workdir=w")
    assert run("local.sh", *flags) == [
        venv,
        f"(cd '{clone}' && {install} .)",
        f"{main} --workdir=w",
    ]
    assert run("local.sh", *flags, JCM_EXTRAS="cuda,tpu")[1] == (
        f"(cd '{clone}' && {install} '.[cuda,tpu]')"
    )
    assert run("gpu.sh", *flags) == [
        venv,
        f"(cd '{clone}' && {install} '.[cuda]')",
        f"env JAX_PLATFORMS=cuda,cpu {main} --workdir=w",
    ]
    assert run("test.sh", "-k", "a b") == [
        venv,
        f"(cd '{clone}' && {install} '.[test]')",
        f"cd '{clone}'",
        f"{python} -m pytest -k 'a b'",
    ]


@pytest.mark.parametrize("script", ["local.sh", "gpu.sh"])
def test_a_dry_run_does_not_install_again(script, clone, environment, tmp_path):
    script = clone / "launch" / script
    variables = {"cwd": tmp_path, "VIRTUAL_ENV": environment}
    variables["path"] = gpus(tmp_path / "driver")
    assert launch(script, "--workdir=w", **variables).returncode == 0
    (line,) = lines_of(launch(script, "--workdir=w", DRY_RUN=1, **variables))
    assert line.endswith("/bin/python' -P -m jcm.main --workdir=w")
    done = launch(script, "--workdir=w", DRY_RUN=0, **variables)
    assert lines_of(done)[1:] == ["-P", "-m", "jcm.main", "--workdir=w"]


def test_printed_commands_are_quoted(clone, environment, tmp_path):
    flags = [
        "",
        " ",
        "a b",
        "it's",
        '"',
        "\\",
        "$HOME",
        "`ls`",
        "*",
        "~",
        "a\nb",
        "!",
        "&",
    ]
    flags += ["{a,b}", "#", "-n", "é", "(1,)", "--config.eval.seeds=(0, 1)"]
    script = clone / "launch" / "local.sh"
    variables = {"DRY_RUN": 1, "VIRTUAL_ENV": environment}
    lines = lines_of(launch(script, "--x", *flags, cwd=tmp_path, **variables))
    assert len(lines) == 2
    assert words(lines[-1])[4:] == ["--x", *flags]


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        (
            "gpu.sh",
            {},
            "no NVIDIA GPU found here, so nothing is installed: use ",
        ),
        ("local.sh", {"JCM_EXTRAS": "cuda"}, "no NVIDIA GPU found here"),
        ("local.sh", {"JCM_EXTRAS": "tpu"}, "no TPU found here, so nothing is inst"),
        ("test.sh", {"JCM_EXTRAS": "cuda"}, "no NVIDIA GPU found here"),
    ],
)
def test_nothing_is_installed_for_a_device_that_is_missing(
    clone, tmp_path, script, variables, message
):
    path = gpus(tmp_path / "driver", count=0)
    # A machine of Google Cloud without a TPU has a network card by Google.
    card = tpu(tmp_path / "card", "0x020000")
    executable(tmp_path / "driver" / "grep", f"#!/bin/sh\necho {card}\n")
    before = files(clone)
    for active in ({}, {"VIRTUAL_ENV": make_environment(tmp_path / "env")}):
        done = launch(
            clone / "launch" / script,
            "--x",
            cwd=clone,
            path=path,
            **variables,
            **active,
        )
        assert_one_line(done, message)
    assert files(clone) == before
    assert not (tmp_path / "env" / "bin" / "installed").exists()


def test_gpu_installs_cuda_and_fails_without_it(clone, environment, tmp_path):
    python = environment / "bin" / "python"
    python.write_text(python.read_text().replace('"$PWD"', '"$JAX_PLATFORMS"'))
    done = launch(
        clone / "launch" / "gpu.sh",
        "--config=configs/a.py",
        cwd=tmp_path,
        path=gpus(tmp_path / "driver"),
        VIRTUAL_ENV=environment,
    )
    assert done.stdout.splitlines() == [
        *("cuda,cpu", "-P", "-m", "jcm.main"),
        "--config=configs/a.py",
    ]
    assert "-e .[cuda]" in (environment / "bin" / "installed").read_text()


@pytest.mark.parametrize("script", ["local.sh", "gpu.sh"])
def test_signals_reach_the_program(script, clone, environment, tmp_path):
    python = environment / "bin" / "python"
    waits = f"trap 'exit 75' TERM; echo started; {SLEEP}"
    python.write_text(python.read_text().replace('printf \'%s\\n\' "$PWD" "$@"', waits))
    program = subprocess.Popen(
        ["bash", clone / "launch" / script, "--workdir=w"],
        env={"PATH": gpus(tmp_path / "driver"), "VIRTUAL_ENV": str(environment)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout.readline() == "started\n"
        program.terminate()
        assert program.wait(timeout=60) == 75


def test_without_python_one_line_says_what_to_do(clone, tmp_path):
    path = tools(tmp_path / "tools")
    # A Python that is too old or cannot create environments does not count.
    executable(path / "python3", "#!/bin/sh\necho no such module >&2\nexit 1\n")
    done = launch(clone / "launch" / "local.sh", "--workdir=w", cwd=clone, path=path)
    assert_one_line(done, "local.sh: no Python 3.11 or newer", "set PYTHON")
    assert not (clone / ".venv").exists()


def test_the_error_names_a_wrong_variable_python(clone):
    done = launch(clone / "launch" / "test.sh", cwd=clone, PYTHON="/no/python")
    assert_one_line(done, "PYTHON=/no/python is not")


def test_the_error_names_a_broken_active_environment(clone, tmp_path):
    script = clone / "launch" / "test.sh"
    done = launch(script, cwd=clone, CONDA_PREFIX=tmp_path / "gone")
    assert_one_line(done, "gone", "deactivate")


def test_the_first_suitable_python_is_used(clone, tmp_path):
    path = tools(tmp_path / "tools")
    executable(path / "python3", "#!/bin/sh\nexit 1\n")
    executable(path / "python3.13", "#!/bin/sh\nexit 127\n")
    for name in ("python3.12", "python3.11"):
        (path / name).symlink_to(sys.executable)
    ask = executable(tmp_path / "ask", f'. "{clone}/launch/setup.sh"; find_python\n')
    assert launch(ask, cwd=tmp_path, path=path).stdout == "python3.12\n"
    done = launch(ask, cwd=tmp_path, path=path, PYTHON=sys.executable)
    assert done.stdout == f"{sys.executable}\n"


def test_only_what_is_missing_is_installed(clone, environment, tmp_path):
    log = environment / "bin" / "installed"

    def run(script, **variables):
        log.unlink(missing_ok=True)
        done = launch(
            clone / "launch" / script,
            "--workdir=w",
            cwd=tmp_path,
            path=gpus(tmp_path / "driver"),
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
    # The environment belongs to another clone now, so its code is installed.
    clone.rename(clone.with_name("another clone"))
    clone = clone.with_name("another clone")
    assert run("local.sh") == "."


@pytest.mark.parametrize(
    ("changes", "installers"),
    [
        ([], ["-m pip install", "-m uv -q pip"]),
        # uv fails.
        (
            [('*"pip install"*)', '*"-m uv"*) exit 1 ;;\n*"pip install"*)')],
            ["-m pip"] * 2,
        ),
        # pip has the address of another index, which uv would not read.
        (
            [
                (
                    '*"-m pip"*',
                    '*"pip config"*) echo "global.index-url=x" ;;\n*"-m pip"*',
                )
            ],
            ["-m pip"],
        ),
    ],
)
def test_uv_installs_in_the_environment_of_the_clone_where_it_can(
    clone, changes, installers
):
    environment = make_environment(clone / ".venv")
    (environment / "bin" / "pip").touch()
    python = environment / "bin" / "python"
    for old, new in changes:
        python.write_text(python.read_text().replace(old, new, 1))
    done = launch(clone / "launch" / "local.sh", "--workdir=w", cwd=clone)
    assert done.returncode == 0, done.stderr
    lines = (environment / "bin" / "installed").read_text().splitlines()
    assert lines[-1].endswith(" -e .")
    for line, installer in zip(lines, installers, strict=True):
        assert line.startswith(installer)


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


def test_main_runs_in_the_folder_of_the_caller_with_its_arguments(
    clone, environment, tmp_path
):
    script = clone / "launch" / "local.sh"
    for flags in (
        ["--config=configs/a.py:smoke", "--workdir=configs/a.py"],
        ["--config", "configs/a.py"],
        ["--config=mine.py", "--a=b c"],
        ["--config=none.py"],
    ):
        done = launch(script, *flags, cwd=tmp_path, VIRTUAL_ENV=environment)
        assert done.stdout.splitlines() == [
            str(tmp_path),
            *("-P", "-m", "jcm.main"),
            *flags,
        ]


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = ROOT / "configs" / "digits_cd.py"
    assert config_lib.find("configs/digits_cd.py") == there
    mine = tmp_path / "configs" / "digits_cd.py"
    mine.parent.mkdir()
    mine.touch()
    assert config_lib.find("configs/digits_cd.py").samefile(mine)


def test_tests_run_in_the_repository_with_the_arguments_of_the_caller(
    clone, environment, tmp_path
):
    script = clone / "launch" / "test.sh"
    done = launch(script, "-k", "a b", cwd=tmp_path, VIRTUAL_ENV=environment)
    assert done.stdout.splitlines() == [str(clone), "-m", "pytest", "-k", "a b"]


def setup_cfg():
    # Inline comments are kept, because a test reads them.
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
    for extra in ("demo", "gcs", "test"):
        lines += parser["options.extras_require"][extra].splitlines()
    for line in filter(None, lines):
        if line.startswith("jcm["):  # Another list of dependencies.
            continue
        requirement, _, reason = line.partition("#")
        assert ">=" in requirement and reason.strip(), line


def test_nothing_imports_tensorflow_or_torch():
    # These two modules of clu import TensorFlow.
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
