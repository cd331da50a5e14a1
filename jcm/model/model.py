"""A trained model in Python: `jcm.load`, `model.denoise`, `model.sample`."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from jcm import config as config_lib
from jcm import methods, networks
from jcm.diffusion import precond
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.sampler import Sampler
from jcm.diffusion.schedule import Schedule, ode_schedule
from jcm.model import build, card, folder
from jcm.model.editor import Editor
from jcm.networks import Params
from jcm.pretrained import checkpoint, released, tensors
from jcm.run import storage
from jcm.run import workdir as workdir_lib
from jcm.run.checkpoints import Checkpoints
from jcm.runtime import sharding
from jcm.runtime.arrays import AnyArray, as_key
from jcm.runtime.errors import JcmError, one_line


class Model:
    """A denoiser or consistency function with its weights.

    Attributes:
      denoiser: D or f as a pure function of parameters.
      params: the weights.
      config: of the run that made them.
      class_names: what the labels 0, 1, ... mean; empty for an unconditional model.
      kind: "edm" or "consistency".
      step: how many training steps made the weights; None where nothing tells.
      workdir: of the run that made them; None where they come from elsewhere.
      about: what else is known of the weights, for a model card.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        params: Params,
        config: ConfigDict,
        class_names: Sequence[str] = (),
        *,
        batch_size: int | None = None,
        step: int | None = None,
        workdir: str | os.PathLike | None = None,
        about: card.About | None = None,
    ):
        """Puts the parts together; see `load`."""
        if batch_size is not None and batch_size < 1:
            raise JcmError(f"batch_size={batch_size} must be at least 1")
        conditional = denoiser.network.arch.num_classes > 0
        self.denoiser, self.params, self.config = denoiser, params, config
        self.class_names = tuple(class_names) if conditional else ()
        consistency = isinstance(denoiser.precond, precond.Consistency)
        self.kind = "consistency" if consistency else "edm"
        self.step, self.workdir, self.about = step, workdir, about or card.About()
        self._batch_size = batch_size or config.sample.batch_size
        self._denoise = jax.jit(denoiser)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The compiled sampler over this process's devices."""
        return Sampler(self.denoiser, batch_size=self._batch_size)

    @functools.cached_property
    def edit(self) -> Editor:
        """Inpainting and the like, of a consistency model; see `Editor`."""
        return Editor(self)

    def denoise(
        self,
        x: Float[AnyArray, "b h w c"],
        sigma: Float[AnyArray, " b"],
        labels: Int[AnyArray, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """D(x, sigma) or f(x, sigma): the clean images behind noisy ones.

        Args:
          x: x0 + sigma z, with x0 in [-1, 1].
          sigma: noise level of each image, above 0; trained for those of the config.
          labels: class of each image, for a class-conditional model.

        Raises:
          JcmError: for shapes, noise levels or labels that do not fit the model.
        """
        x, sigma = jnp.asarray(x, jnp.float32), jnp.asarray(sigma, jnp.float32)
        arch = self.denoiser.network.arch
        shape = (arch.image_size, arch.image_size, arch.image_channels)
        if x.shape[1:] != shape or sigma.shape != x.shape[:1]:
            raise JcmError(
                f"x of shape {x.shape} with sigma of shape {sigma.shape}: the model"
                f" takes (n, {', '.join(map(str, shape))}) and (n,)"
            )
        # Inside of a caller's jit the numbers are not known.
        if not isinstance(sigma, jax.core.Tracer) and not bool(jnp.all(sigma > 0)):
            raise JcmError("sigma must be above 0 for every image")
        labels = self.denoiser.as_labels(labels, len(x))
        return self._denoise(self.params, x, sigma, labels)

    def sample(
        self,
        key: Key[Array, ""] | int,
        count: int,
        *,
        sigmas: Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | None = None,
        labels: Sequence[int | str] | int | str | None = None,
    ) -> Float[np.ndarray, "n h w c"]:
        """Makes images.

        Args:
          key: a JAX key or an integer seed; image i of a key is always the same.
          count: how many.
          sigmas: consistency models: noise levels of the steps, descending, any
            values; (80.0,) is one step. By default those of the config.
          steps: diffusion models: points of the noise grid.
          solver: diffusion models: "heun" or "euler".
          labels: class of each image by number or name, or fewer to be repeated in
            turn; by default every class in turn.

        Returns:
          Images in [-1, 1]. `jcm.to_uint8` makes pixels of them.

        Raises:
          JcmError: for noise levels or labels that do not fit the model.
        """
        key = as_key(key)
        schedule = build.sampling_schedules(self.config, self.denoiser)[-1]
        if self.kind == "consistency":
            if steps is not None or solver is not None:
                raise JcmError(
                    "steps and solver are for diffusion models: a consistency model"
                    " takes sigmas, one for each step"
                )
            if sigmas is not None:
                schedule = Schedule(tuple(float(sigma) for sigma in sigmas))
        else:
            if sigmas is not None:
                raise JcmError("a diffusion model takes steps and solver, not sigmas")
            sample = self.config.sample
            schedule = ode_schedule(
                build.grid(self.config),
                sample.steps if steps is None else steps,
                sample.solver if solver is None else solver,
            )
        noise = self.config.noise
        schedule.check(noise.sigma_min, noise.sigma_max)
        if count < 1:
            raise JcmError(f"count={count} must be at least 1")
        names = self.class_names
        if isinstance(labels, int | str):
            labels = [labels]
        if labels is None or len(labels) == 0:
            labels = build.sample_labels(self.config, self.denoiser, names, count)
        else:
            numbers = [build.label_number(label, names) for label in labels]
            labels = [numbers[i % len(numbers)] for i in range(count)]
        made = self.sampler(self.params, key, range(count), schedule, labels)
        return np.clip(made, -1.0, 1.0)


def load(
    path: str | os.PathLike,
    *,
    ema: str = "",
    step: int = 0,
    batch_size: int | None = None,
    **hints: Any,
) -> Model:
    """Opens the model of a workdir, or a checkpoint of others.

    Args:
      path: workdir of a run, with at least one checkpoint; a folder that `jcm.save`
        wrote;
        a file of the original JAX or PyTorch code or of NVlabs/edm; a folder of
        diffusers; or the name of a published one, such as openai/cd-cifar10-lpips. See
        `pretrained.checkpoint.read`.
      ema: which weights: a rate of `config.train.ema_rates` such as "0.9999",
        "params" for the weights themselves, "target_params" for the target; by
        default what the run's config says.
      step: of the checkpoint; 0 for the newest.
      batch_size: images made at a time; by default what the run's config says.
      **hints: what a checkpoint of others may not tell, fields of
        `pretrained.checkpoint.Hints`: kind, image_size, ...

    Raises:
      JcmError: where there is no run, no checkpoint or no such weights.
    """
    unknown = hints.keys() - {f.name for f in dataclasses.fields(checkpoint.Hints)}
    if unknown:
        raise JcmError(f"{', '.join(sorted(unknown))}: jcm.load takes no such argument")
    path = storage.local_folder(path) if str(path).startswith("gs://") else path
    if not os.path.exists(path) and not released.is_name(path):
        raise JcmError(
            f"there is no {path}: name a workdir, a file or folder of a model, or a"
            " published one, such as openai/cd-cifar10-lpips"
        )
    if folder.is_exported(path):
        if step or ema or hints:
            raise JcmError(f"{path} is one whole model: it takes no other arguments")
        return _of_folder(path, batch_size)
    if checkpoint.is_checkpoint(path):
        if step:
            raise JcmError(f"{path} is one checkpoint: drop step={step}")
        found = checkpoint.read(path, checkpoint.Hints(**hints), ema)
        return _of_checkpoint(found, batch_size)
    if hints:
        raise JcmError(
            f"{', '.join(hints)}: {path} is no checkpoint file; a workdir tells by"
            " itself"
        )
    record = workdir_lib.read(path)
    config = record.config
    network = build.network(config, len(record.class_names))
    denoiser = methods.denoiser(config, network)
    # Placed here, since the devices that wrote the checkpoint may not exist.
    place = sharding.replicated(sharding.make_mesh())
    template = sharding.with_placement(
        network.shapes,
        lambda shapes: jax.tree.map(lambda _: place, shapes),
    )
    rates = [str(rate) for rate in config.train.ema_rates]
    ema = which_weights(config, ema)
    with Checkpoints(path) as checkpoints:
        step = step or checkpoints.latest_step
        if ema in rates:
            averages = dict.fromkeys(rates, template)
            params = checkpoints.restore_part("ema_params", averages, step)[ema]
        else:
            params = checkpoints.restore_part(ema, template, step)
    return Model(
        denoiser,
        params,
        config,
        record.class_names,
        batch_size=batch_size,
        step=step,
        workdir=path,
    )


def of_config(config: ConfigDict, workdir: str | os.PathLike) -> Model:
    """The model that `config.sample` names: another's, or of a checkpoint of a run.

    Raises:
      JcmError: where it cannot be opened, or makes other images than `config.data` at
        other noise levels than `config.noise`.
    """
    wanted, other = config.sample, config.sample.model
    if other and (storage.local_folder(workdir) / "run.json").exists():
        raise JcmError(
            f"{workdir} holds a run of its own: use another --workdir for what"
            f" config.sample.model={other} makes"
        )
    try:
        found = load(
            other or workdir,
            ema=wanted.ema,
            step=wanted.step,
            batch_size=wanted.batch_size,
        )
    except JcmError as error:
        raise JcmError(f"config.sample.model: {error}" if other else error) from error
    arch, data = found.denoiser.network.arch, config.data
    if (arch.image_size, arch.image_channels) != (data.image_size, data.channels):
        raise JcmError(
            f"{other or workdir} makes images with image_size={arch.image_size} and"
            f" channels={arch.image_channels}, and not {data.image_size} and"
            f" {data.channels} as config.data: use another config"
        )
    refuse_other_noise(other or workdir, found, config)
    if other:
        for name in ("steps", "solver") if found.kind == "edm" else ("sigmas",):
            theirs, ours = found.config.sample[name], config.sample[name]
            if theirs != ours:
                logging.info(
                    "sampling with config.sample.%s=%s; what comes with %s is %s",
                    *(name, ours, other, theirs),
                )
    return found


def refuse_other_noise(source: str | os.PathLike, found: Model, config: ConfigDict):
    """Raises JcmError where a model is for other noise levels than `config.noise`."""
    for name, theirs in found.config.noise.items():
        if theirs != config.noise[name]:
            raise JcmError(
                f"{source} is for other noise levels, with {name}={theirs} and not"
                f" {config.noise[name]}: set config.noise.{name}"
            )


def exists(source: str | os.PathLike) -> bool:
    """Whether there is something to `load`, without fetching it first."""
    here = storage.local_folder(source)
    there = any(here.iterdir()) if here.is_dir() else here.exists()
    return there or released.is_here(str(source))


def _of_folder(path: str | os.PathLike, batch_size: int | None) -> Model:
    found = folder.read(path)
    try:
        config = config_lib.from_dict(found.config)
        config_lib.check(config)
        network = build.network(config, len(found.class_names))
        denoiser = methods.denoiser(config, network)
        params = tensors.fill(network.shapes, found.params, "/".join)
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    except Exception as error:  # what anybody wrote can be wrong in any way
        reason = one_line(error)
        raise JcmError(
            f"{path}: config.json is damaged or of another version of jcm ({reason})"
        ) from error
    return Model(
        denoiser,
        jax.device_put(params),
        config,
        found.class_names,
        batch_size=batch_size,
        step=found.step,
        about=found.about,
    )


def _of_checkpoint(found: checkpoint.Checkpoint, batch_size: int | None) -> Model:
    arch = found.network.arch
    config = config_lib.base()
    with config.unlocked(), config.ignore_type():
        config.method = "edm" if found.kind == "edm" else "cd"
        config.model.update(networks.describe(arch))
        config.model.class_conditional = arch.num_classes > 0
        config.data.image_size = arch.image_size
        config.data.channels = arch.image_channels
        config.noise.update(found.noise)
        config.sample.sigmas = found.sigmas or (config.noise.sigma_max,)
        config.sample.steps = found.steps or config.sample.steps
    return Model(
        methods.denoiser(config, found.network),
        jax.device_put(found.params),
        config,
        found.class_names or [str(i) for i in range(arch.num_classes)],
        batch_size=batch_size,
        step=found.step,
        about=card.About(trained=False, licence=found.licence, notes=found.notes),
    )


def which_weights(config: ConfigDict, ema: str = "") -> str:
    """The name of the weights to sample with, the config's choice by default.

    Raises:
      JcmError: for a name that no run of this config has.
    """
    rates = [str(rate) for rate in config.train.ema_rates]
    ema = ema or config.sample.ema or (rates[0] if rates else "params")
    known = ("params", "target_params", *rates)
    if ema not in known:
        raise JcmError(f"ema={ema!r} is unknown: use one of {', '.join(known)}")
    return ema
