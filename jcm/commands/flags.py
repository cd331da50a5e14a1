"""The flags of every command. This file imports no JAX, so that help appears at once.

A flag `--NAME=VALUE` becomes the attribute NAME of the arguments of a command.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from jcm.runtime.errors import did_you_mean

TASKS = (
    "inpaint",
    "outpaint",
    "colorize",
    "super_resolve",
    "stroke_to_image",
    "variations",
    "denoise",
    "interpolate",
)
# The libraries that open a converted model, and the kinds of models of others.
FORMS = ("jcm", "diffusers")
KINDS = ("diffusion", "consistency")


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag, or an argument without a name.

    Attributes:
      name: of the flag, without dashes; an argument has a name in capitals.
      value: what to write for the value in a help text, such as DIR.
      doc: one sentence that says what it is, without a full stop.
      default: the value without the flag. It is shown if it is not empty or 0.
      read: returns the value of a text, or raises ArgumentTypeError.
      choices: the names that the value may have; empty for any.
      needed: whether the flag must be given.
      many: whether it is an argument that may be given any number of times.
    """

    name: str
    value: str
    doc: str
    default: Any = None
    read: Callable[[str], Any] = str
    choices: Sequence[str] = ()
    needed: bool = False
    many: bool = False

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Adds the flag to a group of a parser."""
        text = self.doc
        if self.default:
            several = isinstance(self.default, tuple)
            shown = ",".join(map(str, self.default)) if several else self.default
            text += f"; {shown} by default"
        read = _one_of(self.choices) if self.choices else self.read
        options: dict[str, Any] = {
            "metavar": self.value,
            "type": read,
            "help": text.replace("%", "%%"),
            "choices": self.choices or None,
        }
        if self.name.isupper():
            options["nargs"] = "*" if self.many else None
            group.add_argument(self.name.lower(), **options)
        else:
            options |= {"default": self.default, "required": self.needed}
            group.add_argument(f"--{self.name}", **options)


def values(arguments: argparse.Namespace, flags: Sequence[Flag]) -> dict[str, Any]:
    """Returns the values of some of the flags of a command by name."""
    return {flag.name: getattr(arguments, flag.name) for flag in flags}


def _text(text: str) -> str:
    """Reads a text that must not be empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def _whole(least: int, below: float = math.inf) -> Callable[[str], int]:
    """Returns the reader of a whole number of at least `least` and below `below`."""
    most = f" and below {below}" if below < math.inf else ""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value < below:
            raise argparse.ArgumentTypeError(
                f"{text!r} must be a whole number of at least {least}{most}"
            )
        return value

    return read


def _positive(text: str) -> float:
    """Reads a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def _several(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Returns the reader of values that are separated by commas.

    Args:
      read: the reader of one value.
    """

    def read_all(text: str) -> tuple[Any, ...]:
        try:
            return tuple(map(read, text.split(",")))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} must be numbers such as 1,2: {error}"
            ) from error

    return read_all


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Returns the reader of one of several names."""

    def read(text: str) -> str:
        if text not in names:
            guess = did_you_mean(text, names, f": use one of {', '.join(names)}")
            raise argparse.ArgumentTypeError(f"{text!r} is unknown{guess}")
        return text

    return read


_CONFIG = (
    Flag(
        "config",
        "FILE[:smoke]",
        "config of the run, such as configs/digits_cd.py, which :smoke shrinks to"
        " seconds; by default the config that the workdir records",
        read=_text,
    ),
    Flag(
        "config.FIELD",
        "VALUE",
        "value of a field of the config, such as --config.train.batch_size=32; `jcm"
        " config` explains all fields",
    ),
)
_WORKDIR = Flag(
    "workdir",
    "DIR",
    "folder of the run, or gs://BUCKET/RUN; by default runs/NAME with the name of the"
    " config",
    read=_text,
)
PROCESSES = (
    Flag(
        "coordinator",
        "HOST:PORT",
        "address of process 0; by default $JAX_COORDINATOR_ADDRESS, or what JAX finds"
        " on Slurm, Open MPI 4 and TPUs",
    ),
    Flag(
        "processes",
        "N",
        "number of processes; by default $JAX_NUM_PROCESSES",
        read=_whole(1),
    ),
    Flag(
        "process",
        "I",
        "index of this process, from 0; by default $JAX_PROCESS_ID",
        read=_whole(0),
    ),
    Flag(
        "join_timeout",
        "SECONDS",
        "time to wait until all processes have started",
        300,
        _whole(1),
    ),
    Flag(
        "heartbeat_timeout",
        "SECONDS",
        "time without a sign of life after which a process counts as lost, and all"
        " others end",
        60,
        _whole(10),
    ),
)
RUN = (*_CONFIG, _WORKDIR)
EVALUATE = (
    *RUN,
    Flag(
        "samples",
        "PATH",
        "samples of another program to score too: a folder of pictures of any size, or"
        " an .npz file with pixels as arr_0; without a run in the workdir, only these"
        " are scored",
        "",
    ),
)
EDIT = (
    Flag("task", "TASK", f"one of {', '.join(TASKS)}", TASKS[0], choices=TASKS),
    Flag(
        "input",
        "PATH",
        "picture or folder of pictures to edit; not needed for interpolate",
        "",
    ),
    Flag("output", "DIR", "new or empty folder for the results", ""),
    Flag(
        "mask",
        "PATH",
        "inpaint: picture that is white where the input is replaced, and black"
        " elsewhere",
        "",
    ),
    Flag(
        "factor",
        "N",
        "super_resolve and outpaint: how many times larger the result is",
        2,
        _whole(2),
    ),
    Flag(
        "sigmas",
        "X,X",
        "noise level of each step; by default those of the paper; denoise: the noise"
        " level of the pictures, which is estimated by default",
        (),
        _several(_positive),
    ),
    Flag("variants", "N", "number of results for each picture", 1, _whole(1)),
    Flag(
        "seeds",
        "N,N",
        "interpolate: seeds of the images to pass through",
        (0, 1),
        _several(_whole(0, 2**32)),
    ),
)
_MODEL = (
    "anything that jcm.load opens: a workdir, a saved folder, a file of another"
    " project, or a published name such as openai/cd-cifar10-lpips"
)
CONVERT = (
    Flag("SOURCE", "SOURCE", _MODEL, read=_text),
    Flag("FOLDER", "FOLDER", "new or empty folder", read=_text),
    Flag(
        "to",
        "FORM",
        "library that opens the folder, jcm or diffusers",
        "jcm",
        choices=FORMS,
    ),
    Flag(
        "ema",
        "NAME",
        "weights to convert if there are several, such as 0.9999 or params",
        "",
    ),
    Flag("step", "N", "checkpoint of a workdir; by default the newest", 0, _whole(0)),
    Flag("licence", "NAME", "licence for the model card, such as apache-2.0", ""),
    Flag("notes", "TEXT", "notes for the model card, in Markdown", ""),
)
HINTS = (
    Flag("kind", "KIND", f"{' or '.join(KINDS)} model", choices=KINDS),
    Flag(
        "image_size",
        "N",
        "height and width, if they differ from the published ones",
        read=_whole(1),
    ),
    Flag(
        "attn_resolutions",
        "N,N",
        "NCSN++: image sizes with attention",
        read=_several(_whole(1)),
    ),
    Flag("num_heads", "N", "ADM: attention heads", read=_whole(1)),
    Flag("head_channels", "N", "ADM: channels of each attention head", read=_whole(1)),
)
DEMO = (
    Flag("MODEL", "MODEL", _MODEL, read=_text),
    Flag(
        "host",
        "ADDRESS",
        "address to listen on; 0.0.0.0 allows other machines",
        "127.0.0.1",
    ),
    Flag(
        "port",
        "N",
        "port of the page; by default the first free one from 7860",
        0,
        _whole(0, 2**16),
    ),
)
CONFIG = (
    Flag(
        "NAME",
        "NAME",
        "section or field to print, such as train or learning_rate; by default all",
        many=True,
    ),
    *_CONFIG,
    dataclasses.replace(_WORKDIR, doc="folder of a run, whose config is printed"),
)
_MEASURED = (
    dataclasses.replace(
        _CONFIG[0],
        doc="config to measure, such as configs/digits_cd.py, which :smoke shrinks",
    ),
    _CONFIG[1],
)
SPEED = (
    *_MEASURED,
    Flag(
        "repeats",
        "N",
        "number of timed calls, whose median is printed",
        5,
        _whole(1),
    ),
    Flag("sample_batch", "N", "images per call of the sampler", 64, _whole(1)),
    Flag(
        "profile",
        "DIR",
        "new or empty folder for a trace of three training steps, for TensorBoard or"
        " Perfetto, and for the compiled step as text",
        "",
    ),
    Flag(
        "topology",
        "SLICE",
        "TPU slice such as v5e:4x4, for which the training step is only compiled; needs"
        " libtpu, and no TPU",
        "",
    ),
    Flag("slices", "N", "number of TPU slices, with --topology", 1, _whole(1)),
)
LATENCY = (
    *_CONFIG,
    dataclasses.replace(_WORKDIR, doc="folder of the run whose model is timed"),
    Flag("calls", "N", "number of timed calls of each kind", 100, _whole(1)),
)
INPUT = (
    *_MEASURED,
    Flag("seconds", "X", "time to measure each part for", 2.0, _positive),
)
SCORES = (
    Flag("count", "N", "images whose features are compared", 50_000, _whole(10)),
    Flag("weights", "DIR", "folder with weights of networks; others are skipped", ""),
)
EDITING = (
    Flag(
        "workdir",
        "DIR",
        "folder of a run that was trained on a part of its data",
        read=_text,
        needed=True,
    ),
    Flag(
        "held_out",
        "SPLIT",
        "part of the data that the run was not trained on",
        "train[1597:]",
    ),
)
