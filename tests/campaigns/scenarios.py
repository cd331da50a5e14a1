"""What the campaign of signals runs: small runs that take seconds."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command that is started until it ends.

    Attributes:
      command: of `jcm`.
      config: name of a file in configs/; empty for the run in the workdir.
      fields: changes of the config.
      environment: variables to add.
      processes: number of processes.
      after: name of the scenario whose result the command works on.
    """

    command: str
    config: str = ""
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    processes: int = 1
    after: str = ""

    def arguments(self, workdir: pathlib.Path, pictures: pathlib.Path) -> list[str]:
        """Returns the arguments of `jcm`."""
        fields = dict(self.fields)
        if self.config.startswith("folder"):
            fields["data.path"] = pictures
        return [
            self.command,
            f"--workdir={workdir}",
            *([f"--config=configs/{self.config}.py:smoke"] if self.config else []),
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ]


_STEPS = {
    "train.num_steps": 40,
    "train.checkpoint_every": 5,
    "train.sample_every": 10,
    "train.log_every": 3,  # the checkpoints hold sums of the log
    "data.split": "train[:150]",
    "eval.scores": "('classifier',)",
    "eval.num_images": 100,
    "eval.every_kimg": 0.16,  # ten steps
}
# The curriculum changes at several steps, and with it the rate of the target.
_CT = _STEPS | {
    "loss.scales": "adaptive",
    "loss.start_scales": 4,
    "loss.end_scales": 16,
    "loss.start_ema": 0.9,
    "train.averages": "('0.9', 'power:0.1')",
    "train.snapshot_every": 12,
}
_FOUR_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
_SPLIT = {"mesh.fsdp": 4, "mesh.fsdp_min_mib": 0.002}

SCENARIOS = {
    "ct": Scenario("train", "digits_ct", _CT),
    "accumulate": Scenario("train", "digits_ct", _CT | {"train.accumulate": 4}),
    "fsdp": Scenario("train", "digits_ct", _CT | _SPLIT, _FOUR_DEVICES),
    "teacher": Scenario(
        "train",
        "digits_cd",
        _STEPS
        | {
            "teacher_train.num_steps": 20,
            "teacher_train.checkpoint_every": 5,
            "teacher_train.sample_every": 5,
            "model.class_conditional": True,
            "sample.steps": 3,
        },
    ),
    "evaluate": Scenario(
        "evaluate",
        fields={
            "eval.seeds": "(0, 1)",
            "eval.num_images": 1500,  # in parts of 1024
            "eval.keep_samples": True,
        },
        after="ct",
    ),
    "search": Scenario(
        "search", fields={"search.points": 12, "eval.num_images": 300}, after="ct"
    ),
    "sample": Scenario("sample", fields={"sample.num_images": 1000}, after="ct"),
    "pictures": Scenario(
        "train",
        "folder_ct",
        {
            "data.image_size": 16,
            "eval.scores": "()",
            "train.num_steps": 6,
            "train.checkpoint_every": 2,
            "train.sample_every": 2,
            "model.ch_mult": "(1,)",
        },
    ),
    "two": Scenario(
        "train",
        "digits_ct",
        _CT | {"mesh.fsdp": 2, "mesh.fsdp_min_mib": 0.002},
        {"JAX_NUM_CPU_DEVICES": "1"},
        processes=2,
    ),
}


def write_pictures(folder: pathlib.Path, classes: Sequence[str] = "abc") -> None:
    """Writes 100 small pictures of each class."""
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(100):
            size = (*generator.integers(16, 24, 2), 3)
            pixels = generator.integers(0, 256, size, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
