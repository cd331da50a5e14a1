"""A trained model in Python: `jcm.load`, `model.denoise`, `model.sample`."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from jcm import build, losses, models, precond, sharding, workdir
from jcm import config as config_lib
from jcm.checkpoints import Checkpoints
from jcm.denoiser import Denoiser
from jcm.errors import JcmError
from jcm.images import AnyArray
from jcm.models import Params
from jcm.pretrained import card, checkpoint, diffusers_folder, folder
from jcm.sampling import Sampler, Schedule, check_labels, ode_schedule

# What `save` writes.
FORMS = ("jcm", "diffusers")


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
      notes: where they come from, in Markdown.
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
        notes: str = "",
    ):
        """Puts the parts together; see `load`."""
        if batch_size is not None and batch_size < 1:
            raise JcmError(f"batch_size={batch_size} must be at least 1")
        conditional = denoiser.network.arch.num_classes > 0
        self.denoiser, self.params, self.config = denoiser, params, config
        self.class_names = tuple(class_names) if conditional else ()
        consistency = isinstance(denoiser.precond, precond.Consistency)
        self.kind = "consistency" if consistency else "edm"
        self.step, self.workdir, self.notes = step, workdir, notes
        self._batch_size = batch_size or config.sample.batch_size
        self._denoise = jax.jit(denoiser)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The compiled sampler over this process's devices."""
        return Sampler(self.denoiser, batch_size=self._batch_size)

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
        labels = check_labels(self.denoiser, labels, len(x))
        return self._denoise(self.params, x, sigma, labels)

    def sample(
        self,
        key: Key[Array, ""] | int,
        count: int,
        *,
        sigmas: Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | None = None,
        labels: Sequence[int | str] | None = None,
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
        key = key if isinstance(key, jax.Array) else jax.random.key(key)
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
        if labels is None or len(labels) == 0:
            labels = build.sample_labels(self.config, self.denoiser, count)
        else:
            named = [self._label(label) for label in labels]
            labels = [named[i % len(named)] for i in range(count)]
        made = self.sampler(self.params, key, range(count), schedule, labels)
        return np.clip(made, -1.0, 1.0)

    def _label(self, label: int | str) -> int:
        if not isinstance(label, str):
            return label
        if label not in self.class_names:
            known = ", ".join(self.class_names[:20]) or "none"
            raise JcmError(f"label {label!r} is no class: the model knows {known}")
        return self.class_names.index(label)


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
      path: workdir of a run, with at least one checkpoint; a folder that `save` wrote;
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
    record = workdir.read(path)
    config = record.config
    network = build.network(config, len(record.class_names))
    denoiser = losses.denoiser(config, network)
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
      JcmError: where it cannot be opened, or makes other images than `config.data`.
    """
    wanted, source = config.sample, config.sample.model or workdir
    found = load(source, ema=wanted.ema, step=wanted.step, batch_size=wanted.batch_size)
    arch = found.denoiser.network.arch
    for name, theirs in (
        ("image_size", arch.image_size),
        ("channels", arch.image_channels),
    ):
        if config.data[name] != theirs:
            raise JcmError(
                f"{source} makes images with {name}={theirs}, and not"
                f" {config.data[name]}: use another config, or --config.data.{name}"
            )
    return found


def exists(source: str | os.PathLike) -> bool:
    """Whether there is something that `load` could open."""
    return os.path.exists(source) or checkpoint.is_checkpoint(source)


def save(
    model: Model,
    path: str | os.PathLike,
    *,
    to: str = "jcm",
    licence: str = "",
    notes: str = "",
) -> None:
    """Writes a model as a folder to share, which `load` opens.

    Args:
      model: any that `load` gives.
      path: of the folder, new or empty.
      to: "jcm": params.safetensors (bit for bit), config.json and a model card,
        README.md; "diffusers": what its ConsistencyModelPipeline opens, for a
        consistency model with an ADM.
      licence: for the card, such as apache-2.0.
      notes: for the card, in Markdown; by default where the model comes from.

    Raises:
      JcmError: where the folder has files already or cannot be written, or diffusers
        has no such model.
    """
    if to not in FORMS:
        raise JcmError(f"to={to!r}: use one of {', '.join(FORMS)}")
    if to == "diffusers" and model.kind != "consistency":
        raise JcmError("diffusers has a pipeline for consistency models alone")
    notes = notes or model.notes
    text = _card(model, to, licence, notes)
    if to == "diffusers":
        diffusers_folder.write(
            path,
            model.denoiser.network.arch,
            model.params,
            model.config.noise.to_dict(),
            text,
        )
        return
    exported = folder.Exported(
        params=model.params,
        config=model.config.to_dict(),
        class_names=model.class_names,
        step=model.step,
        notes=notes,
    )
    folder.write(path, exported, text)


def _of_folder(path: str | os.PathLike, batch_size: int | None) -> Model:
    found = folder.read(path)
    try:
        config = config_lib.from_dict(found.config)
        network = build.network(config, len(found.class_names))
    except (KeyError, TypeError, AttributeError) as error:
        raise JcmError(
            f"{path}: config.json is of another version of jcm ({error})"
        ) from error
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), network.shapes)
    theirs = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), found.params)
    if shapes != theirs:
        raise JcmError(f"{path}: config.json and params.safetensors do not go together")
    return Model(
        losses.denoiser(config, network),
        jax.device_put(found.params),
        config,
        found.class_names,
        batch_size=batch_size,
        step=found.step,
        notes=found.notes,
    )


def _of_checkpoint(found: checkpoint.Checkpoint, batch_size: int | None) -> Model:
    arch = found.network.arch
    config = config_lib.base()
    with config.unlocked(), config.ignore_type():
        config.method = "edm" if found.kind == "edm" else "cd"
        config.model.update(models.describe(arch))
        config.model.class_conditional = arch.num_classes > 0
        config.data.image_size = arch.image_size
        config.data.channels = arch.image_channels
        config.train.ema_rates = ()
        config.noise.update(found.noise)
        config.sample.sigmas = found.sigmas or (config.noise.sigma_max,)
    return Model(
        losses.denoiser(config, found.network),
        jax.device_put(found.params),
        config,
        found.class_names or [str(i) for i in range(arch.num_classes)],
        batch_size=batch_size,
        step=found.step,
        notes=found.notes,
    )


def _card(model: Model, form: str, licence: str, notes: str) -> str:
    """What there is to say of a model, with the scores of exactly these weights."""
    arch = model.denoiser.network.arch
    records = []
    if model.workdir is not None:
        digest = models.fingerprint(model.params)
        records = [
            record
            for record in workdir.scores(model.workdir)
            if record.get("weights") == digest
        ]
    made = "" if model.step is None else f", after {model.step:,} training steps"
    classes = f" of {arch.num_classes} classes" if arch.num_classes else ""
    return card.markdown(
        f"A {model.kind} model of {arch.image_size}x{arch.image_size} images{classes}:"
        f" {models.describe(arch)['name']} with {models.count(model.params):,}"
        f" parameters{made}.",
        form=form,
        config=None if model.workdir is None else model.config,
        records=records,
        licence=licence,
        notes=notes,
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
