"""Kills a small run at random moments, damages its checkpoints, and prints a table.

python tests/fault_campaign.py --kills=50 --corruptions=10 [--folder=DIR] [--seed=0]

Each trial is a run that is killed once with SIGKILL, started again, and compared with
an undisturbed run, bit for bit: parameters, averages, and every line of numbers. A
corruption damages a file of the newest checkpoint of a killed run before the run starts
again. The exit code is 0 if all are equal.
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

_STEPS, _EVERY, _SCORED = 60, 6, 15
_CONFIG = {
    "train.num_steps": _STEPS,
    "train.checkpoint_every": _EVERY,
    "train.sample_every": 20,
    "train.log_every": 1,
    "sample.steps": 3,
    "eval.num_images": 400,
    "eval.scores": "('classifier',)",
    "eval.every_kimg": _SCORED * 16 / 1000,
}
MOMENTS = ("start", "compile", "step", "save", "evaluate")
DAMAGES = ("truncated", "flipped", "missing")
# Fields that differ between two runs with the same numbers.
_CLOCK = ("data_wait_secs", "steps_per_sec", "images_per_sec", "eta_secs")


class Run:
    """A training in the background."""

    def __init__(self, workdir, data_dir, cached=True):
        self.workdir = workdir
        workdir.mkdir(parents=True, exist_ok=True)
        self._log = (workdir.parent / f"{workdir.name}.log").open("a+")
        self._begins = self._log.tell()
        flags = [f"--config.{name}={value}" for name, value in _CONFIG.items()]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jcm.main", "--config=configs/digits_edm.py"),
                "--config.model.nf=8",
                "--config.model.num_res_blocks=0",
                "--config.train.batch_size=16",
                *(f"--workdir={workdir}", f"--config.data.dir={data_dir}", *flags),
            ],
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": str(cached).lower()},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    @property
    def said(self):
        """The text that the run has printed."""
        self._log.flush()
        path = self.workdir.parent / f"{self.workdir.name}.log"
        return path.read_text(errors="replace")[self._begins :]

    @property
    def step(self):
        """The step of the last line of numbers."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        steps = re.findall(rb'{"step": (\d+)', lines[-2]) if len(lines) > 1 else []
        return int(steps[0]) if steps else 0

    def until(self, condition, seconds=300):
        """Waits for a condition, or for the end of the run."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(self.said[-2000:])
            time.sleep(0.002)

    def finish(self):
        """Waits for the end, and raises an error with the output if the run failed."""
        self.until(lambda: False)
        if self.process.returncode:
            raise RuntimeError(self.said[-2000:])
        return self


def kill(run, moment, rng):
    """Waits for a moment, kills the run, and returns the last step in its log."""
    if moment == "start":
        time.sleep(rng.uniform(0, 6))
    elif moment == "compile":
        run.until(lambda: "Total:" in run.said)
        time.sleep(rng.uniform(0, 8))
    elif moment == "step":
        step = rng.randrange(1, _STEPS)
        run.until(lambda: run.step >= step)
        time.sleep(rng.uniform(0, 0.05))
    elif moment == "save":
        step = _EVERY * rng.randrange(1, _STEPS // _EVERY)
        folder = run.workdir / "checkpoints"
        # This is while it is written, and while it is renamed.
        run.until(lambda: any(folder.glob(f"{step}*")))
        time.sleep(rng.uniform(0, 0.15))
    elif moment == "evaluate":
        step = _SCORED * rng.randrange(1, _STEPS // _SCORED + 1)
        run.until(lambda: run.step >= step)
        time.sleep(rng.uniform(0, 2))
    step = run.step
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    return step


def damage(folder, how, rng):
    """Damages a file of a checkpoint and returns its name."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated" or not content:
        path.write_bytes(content[: len(content) // 2])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return str(path.relative_to(folder))


def newest(workdir):
    """Returns the newest complete checkpoint, or None."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    steps = sorted(int(name) for name in names if name.isdigit())
    return workdir / "checkpoints" / str(steps[-1]) if steps else None


def result(workdir):
    """Returns the final weights, and all lines of numbers without times."""
    import jax
    import numpy as np

    from jcm.model.loading import load

    weights = [
        np.asarray(leaf).tobytes()
        for part in ("params", "")
        for leaf in jax.tree.leaves(load(workdir, ema=part).params)
    ]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    numbers = [json.loads(line) for line in lines]
    kept = [{k: v for k, v in line.items() if k not in _CLOCK} for line in numbers]
    return weights, kept


def resumed(run):
    """Returns the step from which a run resumed."""
    found = re.findall(r"resuming from step (\d+)", run.said)
    return int(found[0]) if found else 0


def trial_of_kill(workdir, data_dir, moment, rng):
    """Kills and resumes a run, and returns the columns of its row."""
    killed = Run(workdir, data_dir, cached=moment != "compile")
    at = kill(killed, moment, rng)
    again = Run(workdir, data_dir).finish()
    begun = resumed(again)
    done = re.search("is done: ", again.said) is not None
    return at, _STEPS if done else begun


def trial_of_corruption(workdir, data_dir, how, rng):
    """Kills, damages and resumes a run, and returns the columns of its row."""
    killed = Run(workdir, data_dir)
    killed.until(lambda: killed.step >= 4 * _EVERY)
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    folder = newest(workdir)
    file = damage(folder, how, rng)
    again = Run(workdir, data_dir).finish()
    aside = "was moved to" in again.said
    return f"{file} of {folder.name}", resumed(again), aside


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--corruptions", type=int, default=10)
    parser.add_argument("--folder", type=pathlib.Path, default="/tmp/jcm_campaign")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} is there already: name a new --folder")
    data_dir = options.folder / "data"
    rng = random.Random(options.seed)
    Run(options.folder / "undisturbed", data_dir).finish()
    expected = result(options.folder / "undisturbed")

    equal = 0
    print("| kill | moment | logged to step | went on from | lost steps | equal |")
    print("|---|---|---|---|---|---|")
    for number in range(options.kills):
        moment = MOMENTS[number % len(MOMENTS)]
        workdir = options.folder / f"kill_{number}"
        at, begun = trial_of_kill(workdir, data_dir, moment, rng)
        same = result(workdir) == expected
        # Saving is asynchronous, so the checkpoint that is being saved may be lost too.
        same = same and at - begun <= 2 * _EVERY
        equal += same
        print(
            f"| {number + 1} | {moment} | {at} | {begun} | {max(at - begun, 0)} |"
            f" {'yes' if same else 'NO'} |",
            flush=True,
        )
        shutil.rmtree(workdir)
    print(f"\n{equal} of {options.kills} equal\n")

    survived = 0
    print(
        "| corruption | of | went on from | set aside | equal |\n|---|---|---|---|---|"
    )
    for number in range(options.corruptions):
        how = DAMAGES[number % len(DAMAGES)]
        workdir = options.folder / f"corruption_{number}"
        file, begun, aside = trial_of_corruption(workdir, data_dir, how, rng)
        # The run must not start again, or resume from an older step than necessary.
        last = int(file.rpartition(" ")[2])
        right = begun == (last - _EVERY if aside else last)
        same = right and result(workdir) == expected
        survived += same
        print(
            f"| {how} | {file} | {begun} | {'yes' if aside else 'no'} |"
            f" {'yes' if same else 'NO'} |",
            flush=True,
        )
        shutil.rmtree(workdir)
    print(f"\n{survived} of {options.corruptions} detected or harmless")
    sys.exit(equal < options.kills or survived < options.corruptions)


if __name__ == "__main__":
    main()
