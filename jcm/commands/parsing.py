"""The list of commands, their help, and the parser of their arguments."""

import argparse
import dataclasses
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from absl.flags import argparse_flags

from jcm.commands import flags
from jcm.commands.flags import Flag
from jcm.runtime.errors import JcmError, did_you_mean, nearest

# Columns of a screen, in a terminal of another width.
_NARROWEST, _WIDEST = 60, 88
PURPOSE = "Trains, samples, edits with and evaluates consistency models."
HELP = ("-h", "--help", "-help", "--helpfull")
_SEVERAL = "flags for a run of several processes"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
      purpose: what it does, for the list of commands.
      usage: the arguments that it takes, in short.
      about: what it does, as paragraphs.
      examples: arguments to try; the list of commands shows the first.
      groups: its flags, by the heading of the group.
    """

    purpose: str
    usage: str
    about: str
    examples: Sequence[str]
    groups: Mapping[str, Sequence[Flag]]


_USAGE = "[--config=FILE] [--workdir=DIR] [--config.FIELD=VALUE ...]"
COMMANDS = {
    "train": Command(
        "trains or resumes a run, then evaluates it",
        "--config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]",
        "Trains a model, or resumes a run that stopped earlier, and evaluates it at the"
        " end. Ctrl-C saves a checkpoint and stops; the same command resumes the run.",
        (
            "--config=configs/digits_cd.py",
            "--config=configs/digits_cd.py:smoke --config.train.num_steps=20",
            "--workdir=runs/digits_cd",
        ),
        {"flags": flags.RUN, _SEVERAL: flags.PROCESSES},
    ),
    "evaluate": Command(
        "scores a model and shows its samples",
        _USAGE,
        "Samples a model in every way that the config asks for, scores the samples, and"
        " writes scores.md and comparison.png into the workdir. --samples also scores"
        " pictures that another program made.",
        (
            "--workdir=runs/digits_cd",
            "--workdir=runs/digits_cd --config.eval.seeds='(0,1,2)'",
            "--config=configs/cifar10_cd.py \\\n"
            "      --config.sample.model=openai/cd-cifar10-lpips",
            "--config=configs/cifar10_cd.py --samples=FOLDER",
        ),
        {"flags": flags.EVALUATE, _SEVERAL: flags.PROCESSES},
    ),
    "sample": Command(
        "writes samples to files",
        _USAGE,
        "Samples images, and writes them into the folder samples of the workdir. Other"
        " settings give other file names, so that no samples are replaced.",
        (
            "--workdir=runs/digits_cd --config.sample.num_images=16",
            "--workdir=runs/digits_cd --config.sample.sigmas='(80.0,)'",
        ),
        {"flags": flags.RUN, _SEVERAL: flags.PROCESSES},
    ),
    "edit": Command(
        "edits picture files, for example fills in what a mask covers",
        "--task=TASK --input=PATH --output=DIR [--FLAG=VALUE ...]",
        "Edits pictures with a consistency model. Pictures are cropped to their central"
        " square and resized to the size of the model. Each result is a PNG file with"
        " the name of its picture; before_after.png shows the first 16 pictures, what"
        " is replaced in them, and all their results.",
        (
            "--workdir=runs/digits_cd --task=denoise --input=in --output=out",
            "--workdir=runs/digits_cd --task=inpaint --input=photo.png \\\n"
            "      --mask=mask.png --variants=4 --output=out",
        ),
        {
            "flags of the edit": flags.EDIT,
            "flags": flags.RUN,
            _SEVERAL: flags.PROCESSES,
        },
    ),
    "search": Command(
        "finds the best noise levels for a few steps",
        _USAGE,
        "Searches for the noise levels with which a consistency model scores best in"
        " config.search.steps steps, and writes search.json into the workdir.",
        (
            "--workdir=runs/digits_cd",
            "--workdir=runs/cifar10_cd --config.search.score=fid",
        ),
        {"flags": flags.RUN, _SEVERAL: flags.PROCESSES},
    ),
    "convert": Command(
        "writes any model as a folder to share",
        "SOURCE FOLDER [--FLAG=VALUE ...]",
        "Writes a model as a folder that jcm.load or diffusers opens: the weights, bit"
        " for bit, and a model card.",
        (
            "runs/digits_cd my_model",
            "openai/cd-imagenet64-lpips my_model --to=diffusers",
        ),
        {
            "arguments": flags.CONVERT[:2],
            "flags": flags.CONVERT[2:],
            "flags for what a file of another project leaves open": flags.HINTS,
        },
    ),
    "demo": Command(
        "opens a page to try a model in the browser",
        "MODEL [--host=ADDRESS] [--port=N]",
        "Serves a page on which you sample a model, and edit with it by mouse. Needs"
        " gradio: pip install -e '.[demo]' in the clone.",
        ("runs/digits_cd", "runs/digits_cd --port=8000"),
        {"arguments": flags.DEMO[:1], "flags": flags.DEMO[1:]},
    ),
    "config": Command(
        "explains the fields of a config",
        "[NAME ...] [--config=FILE] [--config.FIELD=VALUE ...]",
        "Prints the fields of a config with their values and what they mean, or without"
        " a config the list of configs. Needs neither data nor devices.",
        (
            "--config=configs/digits_cd.py",
            "train learning_rate --config=configs/digits_cd.py",
            "--workdir=runs/digits_cd",
        ),
        {"arguments": flags.CONFIG[:1], "flags": flags.CONFIG[1:]},
    ),
    "benchmark speed": Command(
        "times training and sampling",
        "--config=FILE [--FLAG=VALUE ...]",
        "Times the training step and the sampler of a config on the devices of this"
        " machine, with random images. With --topology it only compiles the training"
        " step for TPUs, to see whether it fits and what it costs. Prints JSON.",
        (
            "--config=configs/digits_cd.py",
            "--config=configs/imagenet64_cd.py --topology=v5e:4x4",
        ),
        {"flags": flags.SPEED, _SEVERAL: flags.PROCESSES},
    ),
    "benchmark latency": Command(
        "times one image, and counts what is compiled",
        "--config=FILE|--workdir=DIR [--FLAG=VALUE ...]",
        "Times sampling, denoising and editing of one image, with the model of a run or"
        " with random weights if only a config is named. Counts the programs that are"
        " compiled for another seed, noise level, label or number of images. Prints"
        " JSON.",
        (
            "--config=configs/digits_cd.py",
            "--workdir=runs/digits_cd --calls=1000",
        ),
        {"flags": flags.LATENCY},
    ),
    "benchmark input": Command(
        "times the training data",
        "--config=FILE [--FLAG=VALUE ...]",
        "Times how fast batches of a config's data are read, mirrored and moved to the"
        " devices, and prepares the data if that has not been done. Prints JSON.",
        (
            "--config=configs/digits_cd.py",
            "--config=configs/folder_cd.py --config.data.path=FOLDER",
        ),
        {"flags": flags.INPUT},
    ),
    "benchmark scores": Command(
        "times the scores",
        "[--count=N] [--weights=DIR]",
        "Times the networks that scores use, FID, and precision and recall, on random"
        " images and features. Prints JSON.",
        ("--count=10000",),
        {"flags": flags.SCORES},
    ),
    "benchmark editing": Command(
        "compares edits with simple methods",
        "--workdir=DIR [--held_out=SPLIT]",
        "Inpaints, enlarges and denoises images that a run was not trained on, and"
        " compares the results with those of simple methods. A classifier, which is"
        " trained on the same part of the data as the run, recognises them. Prints"
        " JSON.",
        ("--workdir=runs/part --held_out='train[1597:]'",),
        {"flags": flags.EDITING},
    ),
}

# The sections of a config that a command uses most.
_SECTIONS = {
    "train": ("train", "optim", "data", "model"),
    "evaluate": ("eval", "sample", "data"),
    "sample": ("sample", "data"),
    "edit": ("sample",),
    "search": ("search", "sample", "data"),
}
# What other programs call the folder for results, and where commands write them.
_OUTPUTS = ("out", "output", "o", "outdir", "out_dir", "output_dir", "save_dir", "dir")
_WRITES = {
    "train": "the folder of the run: name it by --workdir=DIR",
    "evaluate": "the folder of the run, --workdir=DIR",
    "sample": "the folder samples of --workdir=DIR",
    "search": "the folder of the run, --workdir=DIR",
}

# What commands of two words do together, by the first word.
_PURPOSES = {"benchmark": "measures speed, or how well edits work"}


class _Parser(argparse_flags.ArgumentParser):
    """A parser that raises `JcmError`. It also accepts the flags that absl defines."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        message = message.replace(": expected one argument", " needs a value")
        remedy = "" if message.endswith("?") else f": see {self.prog} --help"
        raise JcmError(message + remedy)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows flags as --NAME=VALUE, in lines that fit the terminal."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, **options | {"max_help_position": 26, "width": width()})

    def _format_action_invocation(self, action: argparse.Action) -> str:
        text = super()._format_action_invocation(action)
        takes_value = action.option_strings and action.nargs != 0
        return text.replace(" ", "=", 1) if takes_value else text


def width() -> int:
    """Returns the number of columns of a screen."""
    return max(_NARROWEST, min(shutil.get_terminal_size().columns, _WIDEST))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width())


def overview() -> str:
    """Returns the list of commands, with an example of each."""
    lines = [
        "usage: jcm COMMAND [--FLAG=VALUE ...]",
        "",
        PURPOSE,
        "",
    ]
    for first, names in _by_first_word().items():
        lines += [f"  {first:10} {purpose(first)}", _example(names[0])]
    closing = (
        "`jcm COMMAND --help` lists the flags of a command, and `jcm config` the"
        " configs. `python -m jcm.main --mode=COMMAND` is the same as `jcm COMMAND`;"
        " without --mode it trains. `jcm --print-completion bash` prints a script that"
        " completes commands, flags and fields of configs in a shell."
    )
    return "\n".join([*lines, "", _wrapped(closing)])


def purpose(first: str) -> str:
    """Returns what the commands that begin with a word do."""
    return _PURPOSES[first] if first in _PURPOSES else COMMANDS[first].purpose


def _overview_of(first: str) -> str:
    """Returns the list of the commands that begin with a word."""
    lines = [f"usage: jcm {first} PART [--FLAG=VALUE ...]", ""]
    for name in _by_first_word()[first]:
        part = name.removeprefix(f"{first} ")
        lines += [f"  {part:10} {COMMANDS[name].purpose}", _example(name)]
    return "\n".join([*lines, "", f"`jcm {first} PART --help` lists the flags."])


def _example(name: str) -> str:
    return f"      jcm {name} {COMMANDS[name].examples[0]}"


def _by_first_word() -> dict[str, list[str]]:
    """Returns the names of the commands by their first words."""
    named: dict[str, list[str]] = {}
    for name in COMMANDS:
        named.setdefault(name.split()[0], []).append(name)
    return named


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of a command, by name, and the name as `command`.

    Args:
      words: the name of the command and its arguments, without --config.FIELD.

    Raises:
      JcmError: if the command or a flag is unknown, or if a value does not fit.
      SystemExit: after the help that the arguments ask for.
    """
    name, rest = _command(words)
    arguments, unknown = parser(name).parse_known_args(rest)
    if unknown:
        raise JcmError(_unknown(name, unknown[0]))
    arguments.command = name
    return arguments


def _command(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Returns the command that words begin with, and the words that follow.

    Raises:
      JcmError: names the nearest command if there is none of this name.
      SystemExit: after the list of commands, if the words only begin one.
    """
    for count in (1, 2):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    first, *rest = words
    several = len(_by_first_word().get(first, ())) > 1
    if several and (not rest or rest[0] in HELP):
        print(_overview_of(first))
        raise SystemExit(0)
    name = " ".join(words[: 2 if several else 1])
    guess = did_you_mean(name, COMMANDS, ": see jcm --help")
    raise JcmError(f"unknown command {name!r}{guess}")


def parser(name: str) -> argparse.ArgumentParser:
    """Returns the parser of the arguments that follow the name of a command."""
    command = COMMANDS[name]
    examples = "\n".join(f"  jcm {name} {example}" for example in command.examples)
    made = _Parser(
        prog=f"jcm {name}",
        usage=f"jcm {name} {command.usage}",
        description=_wrapped(command.about),
        epilog=f"examples:\n{examples}",
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
    )
    for heading, members in command.groups.items():
        group = made.add_argument_group(heading)
        for flag in members:
            flag.add_to(group)
        if heading == "flags":
            group.add_argument("-h", "--help", action="help", help="show this text")
    return made


def _unknown(name: str, word: str) -> str:
    """Returns the error for an argument that a command does not take."""
    help_text = f": see jcm {name} --help"
    if not word.startswith("-"):
        if "--workdir" in flags_of(name) and os.path.isdir(word):
            return f"unknown argument {word!r}: did you mean --workdir={word}?"
        if "--config" in flags_of(name) and word.partition(":")[0].endswith(".py"):
            return f"unknown argument {word!r}: did you mean --config={word}?"
        return f"unknown argument {word!r}{help_text}"
    flag = word.partition("=")[0]
    if name in _WRITES and flag.lstrip("-") in _OUTPUTS:
        return f"unknown flag {flag}: jcm {name} writes into {_WRITES[name]}"
    others = [other for other in COMMANDS if flag in flags_of(other)]
    if others:
        return f"{flag} is a flag of jcm {others[0]}, not of jcm {name}{help_text}"
    known = {each.lstrip("-"): each for each in flags_of(name)}
    fields = _fields_like(name, flag.lstrip("-")) if "config.FIELD" in known else ()
    if fields:
        meant = " or ".join(f"--config.{field}" for field in fields)
        return f"unknown flag {flag}: did you mean {meant}?"
    near = nearest(flag.lstrip("-"), known)
    return f"unknown flag {flag}" + (
        f": did you mean {known[near]}?" if near else help_text
    )


def _fields_like(name: str, flag: str) -> tuple[str, ...]:
    """Returns the fields of configs that a wrong flag of a command is like."""
    from jcm import config as config_lib
    from jcm.runtime import similar

    known = config_lib.fields(config_lib.base())
    return similar.fields(flag, known, _SECTIONS.get(name, ()))


def flags_of(name: str) -> list[str]:
    """Returns the flags of a command, as on the command line."""
    groups = COMMANDS[name].groups.values()
    names = [flag.name for group in groups for flag in group]
    return [f"--{name}" for name in (*names, "help") if not name.isupper()]
