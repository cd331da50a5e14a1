"""The commands as Python functions: `jcm.train` and `jcm.evaluate`."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm.commands import train as train_lib
from jcm.data import Dataset, given
from jcm.data.dataset import GIVEN
from jcm.metrics import scores as scores_lib
from jcm.model import build
from jcm.model.build import Levels
from jcm.model.loading import load
from jcm.model.model import Model
from jcm.model.scoring import Scorer, Subject
from jcm.run import storage
from jcm.runtime import leftovers, logs
from jcm.runtime.arguments import explained, whole
from jcm.runtime.arrays import Whole, whole_seed
from jcm.runtime.errors import JcmError, shown


@explained
def train(
    config: ConfigDict | str | os.PathLike,
    *,
    workdir: str | os.PathLike | None = None,
    data: Any = None,
    class_names: Sequence[str] = (),
) -> Model:
    """Trains a model, or resumes a training that stopped earlier.

    Checkpoints, metrics and sample grids are written to the workdir, and the progress
    is shown. The same call resumes from the newest checkpoint. It returns at once if
    the training is complete.

        config = jcm.config.load("configs/digits_ct.py")
        config.train.num_steps = 1000
        model = jcm.train(config, workdir="runs/mine", data=(images, labels))

    Args:
      config: a config, such as `jcm.config.load` returns, or the name of its file, with
        ":smoke" for a run of seconds: "configs/digits_ct.py:smoke".
      workdir: the folder of the run, or gs://BUCKET/RUN; by default runs/NAME with the
        name of the config's file, or runs/DATA_METHOD for a config without a file.
      data: what to train on, and what a teacher that is trained first is trained on:
        - None for what `config.data` names,
        - a folder of pictures, whose sub-folders are classes. They are resized to
          `config.data.image_size`.
        - images, an array of uint8 (n, h, w, c), or (images, labels) with the number of
          each image's class. Height, width and channels must be those of
          `config.data`.
        - a source with `len(source)` and `source[i]`, such as a list or a
          `grain.MapDataset`, whose records are an image (h, w, c), a pair (image,
          label) or a dict with "image" and "label". Threads may read it at once.
        A run resumes only with data of the same fingerprint: a hash of all bytes of
        arrays, or of 100 records of a source.
      class_names: names of the classes of arrays or of a source; by default their
        numbers. Without them, all labels of a source are read once.

    Returns:
      The trained model.

    Raises:
      JcmError: for settings, data or a workdir that cannot be used, and for a loss that
        is not finite.
      Preempted: after SIGTERM or an interrupt (Ctrl-C), once the step in flight is
        done and the state is saved. A second interrupt raises KeyboardInterrupt.
    """
    if not isinstance(config, ConfigDict | str | os.PathLike):
        raise JcmError(
            "the config comes first: jcm.train(config, data=...), with a config such as"
            " jcm.config.load('configs/digits_ct.py')"
        )
    if not isinstance(config, ConfigDict):
        workdir = workdir or f"runs/{config_lib.name(os.fspath(config))}"
        config = config_lib.load(os.fspath(config))
    config, dataset = _with_data(config, data, class_names)
    workdir = workdir or f"runs/{config.data.name}_{config.method}"
    with logs.shown():
        folder = storage.local_folder(workdir)
        storage.begin(folder)
        train_lib.train(config, folder, dataset)
        storage.upload(folder)
    return load(folder)


@explained
def evaluate(
    model: Model | str | os.PathLike,
    *,
    data: Any = None,
    class_names: Sequence[str] = (),
    scores: Sequence[str] | np.ndarray | str | None = None,
    num_images: Whole | None = None,
    seed: Whole = 0,
    steps: Whole | None = None,
    sigmas: Levels | None = None,
    solver: str | None = None,
    workdir: str | os.PathLike | None = None,
) -> dict[str, float]:
    """Scores samples of a model.

    The scores are recorded in the workdir. What has been scored before is not computed
    again.

        jcm.evaluate("runs/digits_cd", scores="classifier", num_images=1000, steps=1)

    Args:
      model: a model, or anything that `jcm.load` opens.
      data: the real images, as `jcm.train` takes them; by default those that the model
        was trained on.
      class_names: names of the classes of arrays or of a source, see `jcm.train`.
      scores: one or several of "fid", "sfid", "kid", "inception_score",
        "precision_recall", "density_coverage", "fd_dinov2", "fd_efficientnet_lite0" and
        "classifier"; by default those of the model's config.
      num_images: number of samples; by default that of the model's config.
      seed: determines the samples.
      steps: number of steps, see `Model.sample`.
      sigmas: noise levels in place of `steps`, see `Model.sample`.
      solver: ODE solver of a diffusion model, see `Model.sample`.
      workdir: where samples and scores are kept; by default the workdir of the model.
        Without one, they are not kept.

    Returns:
      The value of each column of the scores, such as {"fid": 3.55}.

    Raises:
      JcmError: if a score cannot be computed, or an argument does not fit the model.
    """
    if not isinstance(model, Model | str | os.PathLike):
        raise JcmError(
            "evaluate takes a model, which it samples, or what jcm.load opens; this is"
            f" of type {type(model).__name__}"
        )
    seed = whole_seed(seed)  # before the data is read
    model = model if isinstance(model, Model) else load(model)
    config = _eval_config(model, scores, num_images)
    if data is None and not model.about.trained:
        raise JcmError(
            "the model comes from elsewhere: pass the real images as data=..., a folder"
            " or arrays"
        )
    schedule = build.schedule(
        config, model.denoiser, sigmas=sigmas, steps=steps, solver=solver
    )
    if data is not None:
        # All of what is passed here is compared, and nothing else.
        config.data.split, config.eval.reference = "train", ""
    config, dataset = _with_data(config, data, class_names)
    dataset = scores_lib.real_images(config, dataset)
    with logs.shown(), contextlib.ExitStack() as stack:
        folder = workdir or model.workdir
        if folder is None:
            folder = stack.enter_context(leftovers.temporary_folder("evaluate"))
        folder = storage.local_folder(folder)
        storage.begin(folder)
        found = Scorer(config, folder, dataset)(
            Subject.of(model.kind, model), schedule, seed
        )
        storage.upload(folder)
    return found


def _eval_config(
    model: Model,
    scores: Sequence[str] | np.ndarray | str | None,
    num_images: Whole | None,
) -> ConfigDict:
    """Returns the config of a model with other scores and another number of samples.

    Raises:
      JcmError: for values that are not valid, or if there are no scores.
    """
    config = model.config.copy_and_resolve_references()
    if scores is not None:
        config.eval.scores = _names(scores)
    if num_images is not None:
        config.eval.num_images = whole("num_images", num_images)
    config_lib.check(config)
    if not config.eval.scores:
        raise JcmError("name at least one score, such as scores='fid'")
    return config


def _names(scores: Any) -> tuple[str, ...]:
    """Returns the names of scores; one name may stand alone.

    Raises:
      JcmError: if it is something else.
    """
    several = (scores,) if isinstance(scores, str) else scores
    if not isinstance(several, Sequence | np.ndarray):
        raise JcmError(f"scores={shown(scores)} must be names, such as 'fid'")
    return tuple(map(str, several))


def _with_data(
    config: ConfigDict, data: Any, class_names: Sequence[str]
) -> tuple[ConfigDict, Dataset | None]:
    """Returns a config that says what the data is, and the data set if it is given."""
    folder = isinstance(data, str | os.PathLike)
    if class_names and (data is None or folder):
        raise JcmError("class_names are for arrays and sources: pass data=..., too")
    if data is None:
        return config, None
    config = config.copy_and_resolve_references()
    if folder:
        config.data.name, config.data.path = "image_folder", os.fspath(data)
        return config, None
    if config.data.split != "train":
        raise JcmError(
            f"config.data.split={config.data.split!r} is not used with arrays and"
            " sources: set it to 'train', and pass that part"
        )
    size, channels = config.data.image_size, config.data.channels
    dataset = given.load(data, size, channels, class_names)
    config.data.name = GIVEN
    config.data.path = (
        f"{len(dataset)} images of {size}x{size}x{channels}, passed to jcm.train"
    )
    return config, dataset
