"""Reports the speed and the remaining time of a run, on a bar or in the log."""

import collections
import contextlib
import datetime
import sys
import time
from collections.abc import Iterator

import tqdm
from absl import logging

# The speed is measured over the last 16 marks, which are at least 2 seconds apart.
_MARKS = 16
_MARK_SECONDS = 2.0


class Progress:
    """Reports progress on a bar if stderr is a terminal, and otherwise in the log.

    Time is measured from the construction on, except in `pause`.

    Args:
        total_steps: The last step of the run.
        start_step: The step that the run starts from; not 0 if it is resumed.
        batch_size: Images per step, over all processes.
        unit: The name of a step.
        log_seconds: The least time between two lines in the log.
        enabled: Whether to report; set it in process 0 only.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        batch_size: int = 1,
        unit: str = "step",
        *,
        log_seconds: float = 10.0,
        enabled: bool = True,
    ):
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._unit = unit
        self._log_seconds = log_seconds
        self._enabled = enabled
        self._paused = 0.0
        self._marks = collections.deque([(self._time(), start_step)], maxlen=_MARKS)
        self._last_line = time.monotonic()
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                # tqdm's own speed would include the pauses.
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {desc}",
                dynamic_ncols=True,
            )

    def update(
        self, step: int, loss: float | None = None, learning_rate: float | None = None
    ) -> dict[str, float]:
        """Reports that `step` steps are done; it is cheap enough for every step.

        Args:
            step: The number of steps done, including those before a resume.
            loss: The loss to show.
            learning_rate: The learning rate to show.

        Returns:
            kimg, the number of images seen in thousands; and after at least one step
            also steps_per_sec, images_per_sec and eta_secs, the remaining seconds.
        """
        now = self._time()
        first_time, first_step = self._marks[0]
        numbers = {"kimg": step * self._batch_size / 1000}
        if step > first_step and now > first_time:
            speed = (step - first_step) / (now - first_time)
            numbers["steps_per_sec"] = speed
            numbers["images_per_sec"] = speed * self._batch_size
            numbers["eta_secs"] = (self._total_steps - step) / speed
        if now - self._marks[-1][0] >= _MARK_SECONDS:
            self._marks.append((now, step))
        shown = {"loss": loss, "lr": learning_rate}
        self._report(step, numbers, {k: v for k, v in shown.items() if v is not None})
        return numbers

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time in a block from the speed, such as that of evaluations."""
        start = time.monotonic()
        if self._bar is not None:
            self._bar.clear()  # the block may print
        try:
            yield
        finally:
            self._paused += time.monotonic() - start

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _time(self) -> float:
        return time.monotonic() - self._paused

    def _report(
        self, step: int, numbers: dict[str, float], shown: dict[str, float]
    ) -> None:
        if self._bar is not None:
            self._bar.set_description_str(self._text(numbers, shown), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        due = time.monotonic() - self._last_line >= self._log_seconds
        if self._enabled and (due or step == self._total_steps):
            self._last_line = time.monotonic()
            done = f"{self._unit} {step}/{self._total_steps}"
            logging.info("%s  %s", done, self._text(numbers, shown))

    def _text(self, numbers: dict[str, float], shown: dict[str, float]) -> str:
        parts = [f"{name} {value:.4g}" for name, value in shown.items()]
        parts.append(f"{numbers['kimg']:.1f} kimg")
        if "steps_per_sec" in numbers:
            eta = datetime.timedelta(seconds=round(numbers["eta_secs"]))
            parts += [
                f"{_short(numbers['steps_per_sec'])} {self._unit}s/s",
                f"{_short(numbers['images_per_sec'])} images/s",
                f"{eta} left",
            ]
        return "  ".join(parts)


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
