"""A training run that is ready for its next step."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from jcm.data.records import Batch
from jcm.methods import Frozen
from jcm.metrics.scores import ScoreGroup
from jcm.run.checkpoints import Checkpoints
from jcm.run.progress import Progress
from jcm.run.state import State
from jcm.runtime import distributed, preemption
from jcm.training.log import TrainLog
from jcm.training.preview import Preview
from jcm.training.profiling import Profile
from jcm.training.snapshots import Snapshots


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run that is ready for its next step.

    Attributes:
      config: the whole config.
      workdir: the run's folder on this machine.
      state: the state to continue from; the first step donates its buffers.
      saved_step: the newest step that is on disk and can be read; 0 if there is none.
      score_every: steps between two scorings; 0 for none.
      score_first: whether `state` should have been scored already and was not.
      train_step: the compiled step (state, frozen, batch) -> (state, metrics).
      frozen: what does not change during the run: teachers and constants.
      batches: this process's part of every batch, from the next step on.
      batch_sharding: how a global batch is spread over the devices.
      preemption: notes SIGTERM and Ctrl-C.
      checkpoints: writes the state.
      snapshots: writes averages that are never deleted.
      log: reads the metrics of every step.
      progress: reports the speed.
      profile: traces the steps that the config names.
      preview: writes samples and scores.
      score_groups: the scores to compute while training.
    """

    config: ConfigDict
    workdir: pathlib.Path
    state: State
    saved_step: int
    score_every: int
    score_first: bool
    train_step: jax.stages.Compiled
    frozen: Frozen
    batches: Iterator[Batch]
    batch_sharding: jax.sharding.NamedSharding
    preemption: preemption.Watch
    checkpoints: Checkpoints
    snapshots: Snapshots
    log: TrainLog
    progress: Progress
    profile: Profile
    preview: Preview
    score_groups: list[ScoreGroup]

    def next_batch(self) -> tuple[dict[str, jax.Array], float]:
        """Returns the next global batch and the seconds spent waiting for it."""
        started = time.monotonic()
        notice = self.preemption.notice(slow=self.log.takes_long)
        batch = next(self.batches) | {"notice": notice}
        waited = time.monotonic() - started
        place = functools.partial(
            jax.make_array_from_process_local_data, self.batch_sharding
        )
        return jax.tree.map(place, batch), waited

    def stops(self) -> bool:
        """Returns whether any process is asked to stop; every process must call this.

        All processes get the same answer. While steps take long, it includes a signal
        that came a moment ago. Otherwise processes would wait for each other, and learn
        of the signals of others from the metrics, a few steps later.
        """
        if jax.process_count() > 1 and not self.log.settles_first:
            return self.log.stop
        return bool(distributed.gather(np.bool_(self.preemption.received)).any())


def due(step: int, every: int) -> bool:
    """Returns whether an action is due at a step that is a multiple of `every`.

    If `every` is 0, the action is never due.
    """
    return step > 0 and every > 0 and step % every == 0
