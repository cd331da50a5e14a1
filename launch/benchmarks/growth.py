"""Plots how time and memory grow with the work: docs/growth.png.

    pip install -e '.[test]'
    python launch/benchmarks/growth.py --out=build/growth.json --plot=docs/growth.png

Consistency training of a small NCSN++ is measured at batches of 8 to 128, images of 16
to 64 pixels, and 1 to 35 sampling steps, with the defaults of jcm on this machine. The
memory that the training step needs is planned by the compiler; for 1 to 8 devices,
among which parameters and batch are divided, they are simulated. Each line is
proportional to the work and goes through the last point.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import running

# What grows: by the name of a row of numbers, its values.
_GROWING = {
    "batch": (8, 16, 32, 64, 128),
    "size": (16, 32, 48, 64),
    "devices": (1, 2, 4, 8),
    "steps": (1, 2, 5, 10, 18, 35),
}
_TINY = {"batch": (8, 16), "size": (16, 32), "devices": (1, 2), "steps": (1, 2)}
_SETTINGS = {
    "loss.metric": "l2",
    "data.image_size": 32,
    "model.nf": 16,
    "model.ch_mult": (2, 2),
    "model.num_res_blocks": 1,
    "model.attn_resolutions": (),
    "train.batch_size": 16,
}
_SAMPLED = 16
_REPEATS = 5
# The panels: title, label of the axis, what grows, number, power of x in the ideal.
_PANELS = (
    ("Training step", "images in a batch", "batch", "seconds", 1),
    ("Training step", "pixels of an image", "size", "seconds", 1),
    (f"{_SAMPLED} samples", "sampling steps", "steps", "seconds", 1),
    ("Memory of a training step", "images in a batch", "batch", "memory_mib", 1),
    ("Memory of a training step", "pixels of an image", "size", "memory_mib", 1),
    ("Memory of each device", "devices", "devices", "memory_mib", -1),
)
_Numbers = dict[str, list[dict[str, float]]]


def main() -> None:
    """Measures each row in a process of its own, and draws the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="build/growth.json", help="file of numbers")
    parser.add_argument("--plot", default="docs/growth.png", help="file of the plot")
    parser.add_argument("--draw", action="store_true", help="draw the numbers of --out")
    parser.add_argument("--tiny", action="store_true", help="few points, for tests")
    parser.add_argument("--row", choices=_GROWING, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    growing = _TINY if arguments.tiny else _GROWING
    if arguments.row:
        print(json.dumps({"row": _measure(arguments.row, growing[arguments.row])}))
        return
    out = pathlib.Path(arguments.out)
    if not arguments.draw:
        numbers = {}
        for row in growing:
            print(f"measuring {row}", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, f"--row={row}"]
            command += ["--tiny"] * arguments.tiny
            numbers[row] = running.run(command).required()["row"]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    draw(json.loads(out.read_text(encoding="utf-8")), arguments.plot)


def _measure(row: str, values: tuple[int, ...]) -> list[dict[str, float]]:
    """Returns the numbers of a row, in this process."""
    import jax

    from jcm import config as config_lib
    from jcm.runtime import distributed, large_pages

    large_pages.restart("growth.py")
    config = config_lib.load(str(running.ROOT / "configs/cifar10_ct.py"))
    config.update_from_flattened_dict(_SETTINGS)
    if row == "devices":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(values))
    else:
        if row == "batch":
            config.train.batch_size = min(values)
        distributed.initialize(config)
    if row == "steps":
        return _sampling(config, values)
    return [_training(config, row, value) for value in values]


def _training(config: Any, row: str, value: int) -> dict[str, float]:
    """Returns the planned memory and, but for simulated devices, the time of a step."""
    import jax

    from jcm.commands.benchmark import speed
    from jcm.commands.benchmark.measuring import measured
    from jcm.training import memory_plan
    from jcm.training.step import compile_step

    devices = jax.devices()
    if row == "batch":
        config.train.batch_size = value
    if row == "size":
        config.data.image_size = value
    if row == "devices":
        devices = devices[:value]
        config.train.batch_size = 8 * len(jax.devices())
        config.mesh.fsdp, config.mesh.fsdp_min_mib = value, 0.0
    program = speed.create_program(config, devices)
    compiled = compile_step(program.traced)
    plan = memory_plan.make(
        program.state, program.frozen, program.batch, compiled, limit=None
    )
    found = {
        "x": value**2 if row == "size" else value,
        "memory_mib": plan.total / 2**20,
    }
    if row != "devices":
        training = speed.Training(program, compiled)
        found["seconds"] = measured("a step", training.step, _REPEATS).median
    return found


def _sampling(config: Any, values: tuple[int, ...]) -> list[dict[str, float]]:
    """Returns the time of samples in several steps."""
    import jax
    import numpy as np

    from jcm import methods
    from jcm.commands.benchmark.measuring import measured
    from jcm.diffusion.sampler import Sampler
    from jcm.diffusion.schedule import Schedule
    from jcm.model import build

    network = build.network(config, 0)
    sampler = Sampler(methods.denoiser(config, network), batch_size=_SAMPLED)
    params = jax.jit(network.init)(jax.random.key(0))
    found = []
    for steps in values:
        schedule = Schedule(tuple(np.geomspace(80.0, 0.01, steps).tolist()))

        def sample(schedule: Schedule = schedule) -> Any:
            return sampler(params, jax.random.key(1), range(_SAMPLED), schedule)

        timing = measured(schedule.title, sample, _REPEATS)
        found.append({"x": steps, "seconds": timing.median})
    return found


def draw(numbers: _Numbers, file: str) -> None:
    """Draws all panels with logarithmic axes, on which the ideal is a straight line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    units = {"seconds": "seconds", "memory_mib": "MiB"}
    figure, panels = pyplot.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for panel, (title, label, row, name, power) in zip(
        panels.flat, _PANELS, strict=True
    ):
        x = [each["x"] for each in numbers[row]]
        y = [each[name] for each in numbers[row]]
        ideal = [y[-1] * (each / x[-1]) ** power for each in x]
        panel.loglog(x, ideal, color="0.6", linewidth=1, label="proportional")
        panel.loglog(x, y, "o-", color="#2a6f97", markersize=4, label="measured")
        panel.set(title=title, xlabel=label, ylabel=units[name])
        panel.set_xticks(x, [f"{each:,.0f}" for each in x])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels.flat[0].legend(frameon=False)
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
