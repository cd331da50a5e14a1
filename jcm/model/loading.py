"""Loading of models: from workdirs, folders of `jcm.save` and checkpoints of others."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm import methods, networks
from jcm.diffusion.denoiser import Denoiser
from jcm.model import build, card, folder
from jcm.model.model import Model
from jcm.networks import Params
from jcm.pretrained import foreign, released, tensors
from jcm.run import storage
from jcm.run import workdir as workdir_lib
from jcm.run.checkpoints import Checkpoints
from jcm.runtime import sharding
from jcm.runtime.arguments import explained, number, optional, whole, wholes
from jcm.runtime.arrays import AnyArray, Number, Whole
from jcm.runtime.errors import JcmError, one_line, shown
from jcm.runtime.paths import nearest_path

_REMEDY = (
    "name a workdir, a file or folder of a model, or a published one, such as"
    " openai/cd-cifar10-lpips"
)
# Endings of the other files in workdirs and folders of models.
_NO_MODELS = (".png", ".jpg", ".jpeg", ".json", ".jsonl", ".md", ".npz", ".npy", ".py")

# Noise levels of a consistency model of others that does not state their number: those
# of the published models of 64x64 and larger.
_LEVELS = 40


@explained
def load(
    path: str | os.PathLike,
    *,
    ema: str | Number = "",
    step: Whole = 0,
    batch_size: Whole | None = None,
    kind: str | None = None,
    image_size: Whole | None = None,
    attn_resolutions: Sequence[int] | AnyArray | None = None,
    num_heads: Whole | None = None,
    head_channels: Whole | None = None,
) -> Model:
    """Loads the model of a workdir, of a folder of `jcm.save`, or of a checkpoint.

    Args:
      path: one of
        - the workdir of a run with at least one checkpoint,
        - a folder that `jcm.save` wrote,
        - a file of the original JAX or PyTorch code or of NVlabs/edm, or a folder of
          diffusers; see `pretrained.foreign.read`,
        - the name of a published model, such as openai/cd-cifar10-lpips.
      ema: which weights of a run: one of `config.train.averages` such as 0.9999,
        "params" for the trained weights, or "target_params" for those of the target;
        by default what `config.sample.ema` of the run says. A checkpoint of the
        original JAX code has "params_ema", "params" and "target_params".
      step: of the checkpoint of a run; 0 for the newest.
      batch_size: largest number of images at a time on this process's devices; by
        default that of the run's config.
      kind: of a checkpoint of others that does not record it, "diffusion" or
        "consistency"; by default diffusion if the name of the file begins with edm, and
        consistency otherwise.
      image_size: of such a checkpoint: height and width.
      attn_resolutions: of such a checkpoint: image sizes with attention, for NCSN++.
      num_heads: of such a checkpoint: attention heads of each layer, for ADM.
      head_channels: of such a checkpoint: channels of each head, for ADM.

    Raises:
      JcmError: if there is nothing to load, if it is damaged, if a weight is not
        finite, or if an argument does not fit.
    """
    if not isinstance(path, str | os.PathLike):
        raise JcmError(
            f"load takes the name of a folder, file or published model, and this is of"
            f" type {type(path).__name__}"
        )
    ema, step = _ema(ema), whole("step", step)
    batch_size = optional("batch_size", batch_size, least=1)
    hints = foreign.Hints(
        kind,
        optional("image_size", image_size, least=1),
        attn_resolutions=None
        if attn_resolutions is None
        else wholes("attn_resolutions", attn_resolutions),
        num_heads=optional("num_heads", num_heads, least=1),
        head_channels=optional("head_channels", head_channels, least=1),
    )
    given = {name: value for name, value in vars(hints).items() if value is not None}
    address = str(path)
    if re.match("(https?|hf)://", address):
        raise JcmError(
            f"{address} is a URL, which jcm.load does not download: download it, and"
            " load the file or folder"
        )
    path = storage.local_folder(path)
    check_is_model(path)
    if folder.is_exported(path):
        _check_unused(path, "a saved model", ema=ema, step=step, **given)
        return _from_folder(path, batch_size)
    if foreign.is_checkpoint(path):
        _check_unused(path, "a single checkpoint", step=step)
        found = foreign.read(path, hints, ema)
        return _from_checkpoint(path, found, batch_size)
    _check_unused(path, "a workdir", **given)
    return _from_workdir(path, ema, step, batch_size)


def from_config(config: ConfigDict, workdir: str | os.PathLike) -> Model:
    """Loads the model that `config.sample` names.

    Args:
      config: `sample.model` names any model that `load` takes, `sample.step` and
        `sample.ema` its checkpoint and weights.
      workdir: of the run to load if `sample.model` is empty.

    Raises:
      JcmError: if it cannot be loaded, or if `config.data` or `config.noise` differ
        from those of the model.
    """
    wanted, other = config.sample, config.sample.model
    if other and (storage.local_folder(workdir) / "run.json").exists():
        raise JcmError(
            f"{workdir} already holds a run: use another workdir for what"
            f" config.sample.model={other} makes"
        )
    source = other or workdir
    try:
        found = load(
            source, ema=wanted.ema, step=wanted.step, batch_size=wanted.batch_size
        )
    except JcmError as error:
        raise JcmError(f"config.sample.model: {error}" if other else error) from error
    _check_same_images(source, found, config)
    check_same_noise(source, found.config, config)
    if other:
        _log_other_settings(other, found, config)
    return found


def exists(source: str | os.PathLike) -> bool:
    """Returns whether `load` finds something without downloading it."""
    here = storage.local_folder(source)
    there = any(here.iterdir()) if here.is_dir() else here.exists()
    return there or released.is_here(str(source))


def which_weights(config: ConfigDict, ema: str = "") -> str:
    """Returns the name of the weights to sample with.

    Args:
      config: of a run.
      ema: one of `config.train.averages`, "params" or "target_params"; "" for
        `config.sample.ema`, or, if that is empty, the first average.

    Raises:
      JcmError: if a run of this config has no such weights.
    """
    averages = config.train.averages
    ema = ema or config.sample.ema or (averages[0] if averages else "params")
    known = ("params", "target_params", *averages)
    if ema not in known:
        raise JcmError(f"ema={ema!r} is unknown: use one of {', '.join(known)}")
    return ema


def _from_workdir(
    path: pathlib.Path, ema: str, step: int, batch_size: int | None
) -> Model:
    """Loads a checkpoint of a run."""
    record = workdir_lib.read(path)
    config = record.config
    with _naming(path / "run.json"):
        network = build.network(config, len(record.class_names))
        denoiser = methods.denoiser(config, network)
    # The devices that wrote the checkpoint may not exist here.
    place = sharding.replicated(sharding.make_mesh())
    template = sharding.with_placement(
        network.shapes,
        lambda shapes: jax.tree.map(lambda _: place, shapes),
    )
    ema = which_weights(config, ema)
    with Checkpoints(path) as checkpoints:
        newest = step or checkpoints.latest_step
        if ema in config.train.averages:
            averages = dict.fromkeys(config.train.averages, template)
            params = checkpoints.restore_part("ema_params", averages, newest)[ema]
        else:
            params = checkpoints.restore_part(ema, template, newest)
    return _model(
        path,
        denoiser,
        params,
        config,
        record.class_names,
        batch_size=batch_size,
        step=newest,
        workdir=path,
        about=card.About(software=record.software),
    )


def parts(found: folder.Exported) -> tuple[Denoiser, Params, ConfigDict]:
    """Returns the parts of the model that a folder describes.

    Raises:
      JcmError: if the weights do not fit the config, or the config is impossible.
    """
    config = config_lib.from_dict(found.config)
    config_lib.check(config)
    network = build.network(config, len(found.class_names), len(found.params))
    params = tensors.fill(network.shapes, found.params, "/".join)
    return methods.denoiser(config, network), params, config


def _from_folder(path: pathlib.Path, batch_size: int | None) -> Model:
    """Loads what `jcm.save` wrote.

    Raises:
      JcmError: if the folder does not describe a model of this version.
    """
    with folder.opened(path) as found:
        with _naming(path / folder.CONFIG):
            denoiser, params, config = parts(found)
        params = jax.device_put(params)
    return _model(
        path,
        denoiser,
        params,
        config,
        found.class_names,
        batch_size=batch_size,
        step=found.step,
        about=found.about,
    )


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Names the file whose config an error in the block is about."""
    try:
        yield
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    except Exception as error:  # a config can be impossible in many ways
        raise JcmError(
            f"{path} is damaged or of another version of jcm ({one_line(error, 200)})"
        ) from error


def _from_checkpoint(
    path: pathlib.Path, found: foreign.Checkpoint, batch_size: int | None
) -> Model:
    """Makes a model and its config of another project's checkpoint."""
    arch = found.network.arch
    config = config_lib.base("edm" if found.kind == "diffusion" else "cd")
    with config.unlocked(), config.ignore_type():
        config.model.update(networks.describe(arch))
        config.model.class_conditional = arch.num_classes > 0
        config.data.image_size = arch.image_size
        config.data.channels = arch.image_channels
        config.noise.update(found.noise)
        if found.kind == "consistency":
            config.loss.num_scales = found.levels or _LEVELS
        config.sample.sigmas = found.sigmas or (config.noise.sigma_max,)
        config.sample.steps = found.steps or config.sample.steps
    return _model(
        path,
        methods.denoiser(config, found.network),
        jax.device_put(found.params),
        config,
        found.class_names or [str(i) for i in range(arch.num_classes)],
        batch_size=batch_size,
        step=found.step,
        about=card.About(trained=False, licence=found.licence, notes=found.notes),
    )


def _model(path: pathlib.Path, *parts: Any, **facts: Any) -> Model:
    """Creates a model of what was read from `path`."""
    try:
        return Model(*parts, **facts)
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error


def _ema(ema: Any) -> str:
    """Returns the name of the weights; an average may be named by its rate.

    Raises:
      JcmError: if it is neither a string nor a number.
    """
    if isinstance(ema, str):
        return ema
    try:
        number("ema", ema)
    except JcmError:
        raise JcmError(
            f"ema={shown(ema)} must be a string or a number, such as 0.9999"
        ) from None
    return str(ema)


def check_is_model(place: pathlib.Path) -> None:
    """Checks that a path can be a model, or is the name of a published one.

    Raises:
      JcmError: if it cannot; names a near one.
    """
    path = str(place)
    if not place.exists() and not released.is_name(path):
        near = nearest_path(path)
        remedy = f"did you mean {near}?" if near else _REMEDY
        if not near and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            remedy += (
                f"; if it is a repository of the Hugging Face Hub, download it with `hf"
                f" download {path} --local-dir=FOLDER` and load FOLDER"
            )
        raise JcmError(f"there is no {path}: {remedy}")
    if place.is_dir():
        is_model = folder.is_exported(path) or foreign.is_checkpoint(path)
        wrong = not is_model and not (place / "run.json").exists()
    else:
        wrong = place.suffix.lower() in _NO_MODELS
    # A relative path may begin in a run.
    above = [each for each in place.absolute().parents if _is_model_folder(each)]
    if wrong and above:
        run = os.path.relpath(above[0]) if not place.is_absolute() else above[0]
        raise JcmError(f"{path} is a part of a model, not a model: did you mean {run}?")
    if wrong and place.is_file():
        raise JcmError(f"{path} is not a model: {_REMEDY}")


def _is_model_folder(path: pathlib.Path) -> bool:
    return (path / "run.json").exists() or folder.is_exported(path)


def _check_unused(path: str | os.PathLike, kind: str, /, **arguments: Any) -> None:
    """Raises JcmError if an argument was given that `path`, a `kind`, does not take."""
    given = [f"{name}={value!r}" for name, value in arguments.items() if value]
    if given:
        raise JcmError(f"{path} is {kind}: drop {', '.join(given)}")


def _check_same_images(
    source: str | os.PathLike, found: Model, config: ConfigDict
) -> None:
    """Raises JcmError if a model's images differ in shape from those of the data."""
    arch, data = found.denoiser.network.arch, config.data
    if (arch.image_size, arch.image_channels) != (data.image_size, data.channels):
        raise JcmError(
            f"{source} makes images with image_size={arch.image_size} and"
            f" channels={arch.image_channels}, and not {data.image_size} and"
            f" {data.channels} as config.data: use another config"
        )


def check_same_noise(
    source: str | os.PathLike, theirs: ConfigDict, ours: ConfigDict
) -> None:
    """Raises JcmError if a model's config has other noise levels than ours."""
    for field, before, now in config_lib.differences(theirs, ours, only=("noise",)):
        name = field.removeprefix("noise.")
        raise JcmError(
            f"{source} is for other noise levels, with {name}={before} and not"
            f" {now}: set config.{field}"
        )


def _log_other_settings(source: str, found: Model, config: ConfigDict) -> None:
    """Logs where `config.sample` differs from the settings that come with a model."""
    for name in ("steps", "solver") if found.kind == "diffusion" else ("sigmas",):
        theirs, ours = found.config.sample[name], config.sample[name]
        if theirs != ours:
            logging.info(
                "sampling with config.sample.%s=%s; the setting of %s is %s",
                *(name, ours, source, theirs),
            )
