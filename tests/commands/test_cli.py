"""Tests of the command line: its screens, and an error of one line for each mistake."""

import ast
import configparser
import shlex
import subprocess
import sys

import pytest
from paths import ROOT

from jcm import config as config_lib
from jcm import main as main_lib
from jcm.commands import cli, flags, parsing
from jcm.model import save
from jcm.pretrained import foreign
from jcm.run import workdir as workdir_lib

_DIGITS = f"--config={ROOT / 'configs' / 'digits_cd.py'}:smoke"


@pytest.fixture
def run(command, monkeypatch, tmp_path):
    """Runs the command line in an empty folder; returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        done = command(*arguments)
        return done.code, done.err.strip() if done.code else done.out

    return call


_OVERVIEW = """\
usage: jcm COMMAND [--FLAG=VALUE ...]

Trains, samples, edits with and evaluates consistency models.

  train      trains or resumes a run, then evaluates it
      jcm train --config=configs/digits_cd.py
  evaluate   scores a model and shows its samples
      jcm evaluate --workdir=runs/digits_cd
"""
_DEMO = """\
usage: jcm demo MODEL [--host=ADDRESS] [--port=N]

Serves a page on which you sample a model, and edit with it by mouse. Needs
gradio: pip install -e '.[demo]' in the clone.

arguments:
  MODEL           anything that jcm.load opens: a workdir, a saved folder, a
                  file of another project, or a published name such as
                  openai/cd-cifar10-lpips

flags:
  --host=ADDRESS  address to listen on; 0.0.0.0 allows other machines; 127.0.0.1
                  by default
  --port=N        port of the page; by default the first free one from 7860
  -h, --help      show this text

examples:
  jcm demo runs/digits_cd
  jcm demo runs/digits_cd --port=8000
"""
_FIELDS = """\
* differs from the base config

config.data
* flip              False         whether to flip random images horizontally
                                  [base True]

config.optim
  name              radam         optimiser: radam or adam
* learning_rate     0.5           learning rate after the warm-up [at least 0;
                                  base 0.0004]
"""


def test_help_lists_the_commands(run):
    code, output = run("--help")
    assert code == 0 and output.startswith(_OVERVIEW)
    for arguments in ((), ("help",), ("-h",)):
        assert run(*arguments) == (0, output)
    code, output = run("benchmark")
    assert output.startswith("usage: jcm benchmark PART") and "  editing " in output
    assert run("benchmark", "--help") == (0, output)


def test_help_of_a_command_lists_its_flags_only(run):
    assert run("demo", "--help") == (0, _DEMO)
    assert run("help", "demo") == (0, _DEMO)
    _, output = run("train", "--help")
    shown = {word.partition("=")[0] for word in output.split() if word[:2] == "--"}
    assert shown == {
        *("--config", "--config.FIELD", "--workdir", "--help", "--coordinator"),
        *("--processes", "--process", "--join_timeout", "--heartbeat_timeout"),
        *("--config.train.batch_size", "--config.train.num_steps"),  # of examples
    }


def test_screens_fit_80_columns_and_examples_parse(run):
    screens = [run("--help"), run("benchmark"), run("config"), run("config", _DIGITS)]
    for name, command in parsing.COMMANDS.items():
        screens.append(run(*name.split(), "--help"))
        for example in command.examples:
            _, words = cli._split(shlex.split(f"{name} {example}".replace("\\\n", "")))
            assert parsing.parse(words).command == name
    for code, output in screens:
        assert code == 0
        assert max(map(len, output.splitlines())) <= 80, output


def test_version(run):
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    code, output = run("--version")
    assert (code, output.split()[0]) == (0, "jcm") and output.split()[1][0].isdigit()
    (script,) = parsed["options.entry_points"]["console_scripts"].split("\n")[1:]
    assert script == f"jcm = {main_lib.command_line.__module__}:command_line"


@pytest.mark.parametrize(
    "arguments",
    [
        [_DIGITS, "--workdir=w", "--config.train.num_steps=3", "--process=0"],
        ["--workdir", "w", "--config.data.flip=False", "--config", _DIGITS[9:]],
    ],
)
@pytest.mark.parametrize("mode", ["train", "sample", "config"])
def test_a_command_equals_its_mode(arguments, mode):
    if mode == "config":
        arguments = [each for each in arguments if "process" not in each]
    expected = cli.parse(["jcm", mode, *arguments])
    assert expected.command == mode and expected.workdir == "w"
    assert expected.config_name == "digits_cd_smoke"
    for given in (
        [f"--mode={mode}", *arguments],
        [*arguments, "--mode", mode],
        *([arguments] if mode == "train" else []),
    ):
        assert cli.parse(["jcm/main.py", *given]) == expected


def test_a_field_is_left_open_again():
    flags = [f"--config.teacher_train.num_steps={value}" for value in (3, "None")]
    parsed = cli.parse(["jcm", "train", _DIGITS, *flags])
    assert parsed.config.teacher_train.num_steps is None
    assert parsed.given == ("teacher_train.num_steps",) * 2
    in_two = [flags[0], *flags[1].split("=")]
    parsed = cli.parse(["jcm", "train", _DIGITS, *in_two])
    assert parsed.config.teacher_train.num_steps is None
    parsed = cli.parse(["jcm", "train", _DIGITS, *reversed(flags)])
    assert parsed.config.teacher_train.num_steps == 3


def test_the_last_of_repeated_flags_counts():
    twice = ["--config.train.num_steps=3", "--config.train.num_steps", "4"]
    parsed = cli.parse(["jcm", "train", _DIGITS, *twice, "--workdir=a", "--workdir=b"])
    assert (parsed.workdir, parsed.config.train.num_steps) == ("b", 4)


def test_fields_are_explained(run):
    changed = ("--config.optim.learning_rate=0.5", "--noconfig.data.flip")
    config = f"--config={ROOT / 'configs' / 'cifar10_cd.py'}"
    chosen = ("learning_rate", "optim.name", "config.data.flip")
    assert run("config", *chosen, config, *changed) == (0, _FIELDS)
    code, output = run("config", _DIGITS, "--config.train.num_steps=5")
    assert "\nconfig.model.adm\n" in output and "\n* num_steps         5 " in output
    assert "\n* nf                8 " in output  # The mode :smoke sets it.
    assert run("config", "config.noise", _DIGITS)[1].count("\n  ") == 4 + 1
    code, output = run("config")
    assert "  configs/digits_cd.py       Consistency distillation on hand" in output


def test_a_workdir_replaces_its_config(run, tmp_path):
    config = config_lib.load("configs/digits_cd.py:smoke")
    workdir_lib.claim(tmp_path, workdir_lib.Record(config, ("a",), "0"))
    here = f"--workdir={tmp_path}"
    code, output = run("config", here, "--config.sample.num_images=3", "num_images")
    assert code == 0
    assert "* num_images        3 " in output
    code, output = run("sample", here, _DIGITS, "--config.model.nf=16")
    assert code == 1
    assert "holds a run with config.model.nf=8, not 16: use" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean train?"),
        (["--mode=fly"], "unknown command 'fly': see jcm --help"),
        (["--mode", _DIGITS], "unknown command '"),
        (["benchmark", "sped"], "command 'benchmark sped': did you mean benchmark spe"),
        (["train"], "name a config, such as --config=configs/digits_cd.py"),
        (["train", _DIGITS, "x"], "unknown argument 'x': see jcm train --help"),
        (["train", "--confg=x"], "unknown flag --confg: did you mean --config?"),
        (["train", "-workdir=x"], "unknown flag -workdir: did you mean --workdir?"),
        (["--lr=1"], "--lr: did you mean --config.optim.learning_rate?"),
        (["sample", "--n=4"], "--n: did you mean --config.sample.num_images?"),
        (["sample", "--num=4"], "--num: did you mean --config.sample.num_images?"),
        (["sample", "--out=x"], "jcm sample writes into the folder samples of --work"),
        (["train", "--output=x"], "writes into the folder of the run: name it by --w"),
        (["train", "--data=x"], "--data: did you mean --config.data.path?"),
        (["train", "--batch_size=2"], "did you mean --config.train.batch_size?"),
        (["sample", "--batch-size=2"], "did you mean --config.sample.batch_size?"),
        (["train", "--steps=2"], "--steps: did you mean --config.train.num_steps?"),
        (["search", "--steps=2"], "--steps: did you mean --config.search.steps?"),
        (["train", "--epochs=2"], "--epochs: did you mean --config.train.num_steps?"),
        (["train", "--wd=2"], "unknown flag --wd: see jcm train --help"),
        (["train", "--zzz"], "unknown flag --zzz: see jcm train --help"),
        (["train", "--task=x"], "--task is a flag of jcm edit, not of jcm train: see"),
        (["train", "--config"], "--config needs a value: see jcm train --help"),
        (["train", "--config="], "--config: the value is empty: see jcm train"),
        (["train", _DIGITS, "--workdir="], "--workdir: the value is empty: see"),
        (["train", "--processes=0"], "--processes: '0' must be a whole number of at"),
        (["edit", "--task=inpant"], "--task: 'inpant' is unknown: did you mean inpain"),
        (["edit", "--task=x"], "'x' is unknown: use one of inpaint, outpaint, colori"),
        (["edit", "--sigmas=1;2"], "--sigmas: '1;2' must be numbers such as 1,2: "),
        (["edit", "--sigmas=80,-1"], "'-1' must be a number above 0: see jcm edit"),
        (["edit", "--sigmas=nan"], "'nan' must be a number above 0: see jcm edit"),
        (["edit", "--seeds=0,-1"], "'-1' must be a whole number of at least 0 and"),
        (["edit", "--seeds=4294967296"], "of at least 0 and below 4294967296: see"),
        (["demo", "a", "--port=65536"], "of at least 0 and below 65536: see jcm demo"),
        (["sample", _DIGITS, "--config.sample.seed=-1"], "seed=-1 must be at least 0"),
        (
            ["search", _DIGITS, "--config.search.seed=4294967296"],
            "config.search.seed=4294967296 must be at least 0, below 2^32",
        ),
        (["convert", "a"], "arguments are required: FOLDER: see jcm convert --help"),
        (["convert", "a", "b", "--kind=flow"], "--kind: 'flow' is unknown: use one of"),
        (["demo", "a", "--config.train.num_steps=1"], "jcm demo has no config: drop"),
        (
            ["demo", "a", "--config=b"],
            "--config is a flag of jcm train, not of jcm dem",
        ),
        (["--print-completion", "bsh"], "for the shell 'bsh': did you mean bash?"),
        (["config", "loss"], "name a config, such as --config=configs/digits_cd.py"),
        (["config", _DIGITS, "lerning_rate"], "did you mean config.optim.learning_rat"),
        (
            ["config", "--workdir=nowhere"],
            "nowhere is not the workdir of a run: name a config",
        ),
        (
            ["sample", "--workdir=nowhere"],
            "nowhere is not the workdir of a run: name a run by --workdir=DIR, or",
        ),
        (
            ["edit"],
            "name a run by --workdir=DIR, or a model by --config=FILE --config.",
        ),
        (["search", "--config.sample.model=m"], "needs a config with images of the sa"),
        (
            ["train", "configs/digits_cd.py:smoke"],
            "did you mean --config=configs/digit",
        ),
        (["sample", _DIGITS, "--workdir=nowhere"], "nowhere is not the workdir"),
        (["train", _DIGITS, "--coordinator=localhost:1"], "go together"),
        (
            ["train", _DIGITS, "--config.sample.model=x"],
            "use config.init.model to start",
        ),
        (
            ["sample", _DIGITS, "--config.sample.model=openai/gan"],
            "'openai/gan' is no published model: use one of openai/edm-cifar10",
        ),
    ],
)
def test_mistakes_are_errors_of_one_line(run, arguments, message):
    code, output = run(*arguments)
    assert code == 1
    assert message in output
    assert output.startswith("jcm: ")
    assert "\n" not in output


def test_wrong_folders_are_named_with_the_right_flags(run, tmp_path):
    for folder, name, content in (
        ("run", "run.json", "{}"),
        ("mine", "params.safetensors", ""),
        (
            "mine",
            "config.json",
            '{"config": {"method": "cd", "data": {"name": "digits"}}}',
        ),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(content)
    for arguments, message in (
        (["sample", "--workdir=rum"], "rum is not the workdir of a run: did you mean"),
        (["sample", "--workdir=rum"], "did you mean --workdir=run?"),
        (["sample", "run"], "unknown argument 'run': did you mean --workdir=run?"),
        (["edit", "--workdir=mine"], "mine is a saved model and not the workdir of a"),
        (
            ["edit", "--workdir=mine"],
            "use --config=configs/digits_cd.py --config.sample.model=mine instead of",
        ),
    ):
        code, output = run(*arguments)
        assert (code, "\n" in output) == (1, False)
        assert message in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rat=3", "did you mean config.optim.learning_rate?"),
        ("batch_size=3", "mean config.train.batch_size or config.sample.batch_size?"),
        (
            "optim.lr=3",
            "unknown field config.optim.lr: did you mean config.optim.learn",
        ),
        ("lr=3", "unknown field config.lr: did you mean config.optim.learning_rate?"),
        ("optim.zz=3", "unknown field config.optim.zz: `jcm config --config=FILE`"),
        ("zzz=3", "unknown field config.zzz: `jcm config --config=FILE` prints all"),
        ("train=3", "config.train is a section: name one of its fields, such as"),
        ("loss.p_mean=3", "of config.method=edm, and the method of this config is cd"),
        ("train.num_steps=many", "=many must be a whole number, such as 800000"),
        ("train.num_steps=", "config.train.num_steps= must be a whole number"),
        ("train.num_steps", "--config.train.num_steps needs a value"),
        ("teacher_train.num_steps=many", "=many must be a whole number, or None"),
        ("teacher_train.num_step=3", "mean config.teacher_train.num_steps?"),
        ("teacher_train.warmup_kimg=-1", "warmup_kimg=-1.0 must be at least 0"),
        ("seed=-1", "config.seed=-1 must be at least 0, below 2^32"),
        ("seed=4294967296", "config.seed=4294967296 must be at least 0, below 2^32"),
        ("eval.seeds=(0,-1)", "config.eval.seeds=[0, -1] must be at least 0, below"),
        ("train.num_steps=0", "config.train.num_steps=0 must be at least 1"),
        ("data.flip=perhaps", "config.data.flip=perhaps must be True or False"),
        ("eval.seeds=(0, ", "config.eval.seeds=(0, must be values in brackets, such"),
        ("model.ch_mult[0]=2", "unknown field config.model.ch_mult[0]: did you mean"),
        ("method=edm", "config.method='edm' does not fit"),
        ("method=edn", "config.method='edn' is unknown"),
        ("init.state=True", "needs config.init.model: name the model"),
    ],
)
def test_wrong_fields_are_errors_of_one_line(run, override, message):
    code, output = run("config", _DIGITS, f"--config.{override}")
    assert (code, "\n" in output) == (1, False)
    assert message in output
    assert output.startswith("jcm: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "mine.py: SyntaxError: "),
        (b"x = 1\n", "mine.py is not a config: it must define get_config(mode)"),
        (b"import nothing_like_it\n", "mine.py: ModuleNotFoundError: No module named"),
        (None, "mine.py"),  # a folder
    ],
)
def test_a_wrong_config_file_is_an_error_of_one_line(run, tmp_path, content, message):
    if content is None:
        (tmp_path / "mine.py").mkdir()
    else:
        (tmp_path / "mine.py").write_bytes(content)
    code, output = run("train", "--config=mine.py")
    assert (code, "\n" in output) == (1, False)
    assert output.startswith("jcm: ") and message in output


def test_help_needs_no_jax_and_configs_no_data():
    program = """
import sys
from jcm import main
sys.argv = ["jcm", *sys.argv[1:]]
try:
    main.command_line()
finally:
    found = {"jax", "flax", "orbax", "grain", "tensorflow_datasets"} & {*sys.modules}
    print(sorted(found), file=sys.stderr)
"""

    def imported(*arguments):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        return set(ast.literal_eval(done.stderr.splitlines()[-1]))

    assert imported("train", "--help") == set()
    assert imported("config") == set()
    assert imported("config", _DIGITS) <= {"jax", "flax"}
    assert imported("sample", "--workdir=nowhere") == set()


def test_a_reader_that_ends_early_is_no_error():
    command = (
        f"set -o pipefail; {sys.executable} -m jcm.main config {_DIGITS} | head -n1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("* differs from the base config\n", "")


def test_the_shell_completes_commands_flags_and_fields(run):
    code, script = run("--print-completion", "bash")
    assert code == 0
    program = f"""{script}
complete_() {{ COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*"
  COMPREPLY=(); _shtab_jcm; echo "${{COMPREPLY[*]}}"; }}
complete_ jcm tr
complete_ jcm train --config.optim.l
complete_ jcm edit --task in
complete_ jcm benchmark s
"""
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "train",
        "--config.optim.learning_rate",
        "inpaint interpolate",
        "speed scores",
    ]


def test_kinds_and_forms_are_those_of_models():
    assert flags.FORMS == save.FORMS
    assert flags.KINDS == foreign._KINDS
