"""Saving of models as folders to share: `jcm.save`."""

import dataclasses
import json
import os

import jax
import numpy as np

from jcm import networks
from jcm.diffusion.precond import Consistency
from jcm.model import card, folder, loading
from jcm.model.model import Model
from jcm.pretrained import diffusers_folder
from jcm.runtime.arguments import explained
from jcm.runtime.errors import JcmError, one_line

FORMS = ("jcm", "diffusers")

# Sections of the config that describe a model that was trained elsewhere.
_SECTIONS = ("method", "noise", "model", "loss", "sample")


@explained
def save(
    model: Model,
    path: str | os.PathLike,
    *,
    to: str = "jcm",
    licence: str = "",
    notes: str = "",
) -> None:
    """Writes a model as a folder to share, which `jcm.load` loads.

    Args:
      model: the model.
      path: the folder, new or empty.
      to: "jcm" writes params.safetensors (bit for bit), config.json and a model card,
        README.md. "diffusers" writes a folder for its ConsistencyModelPipeline; this
        needs a consistency model with an ADM.
      licence: for the model card, such as apache-2.0; by default that of the release.
      notes: for the model card, in Markdown; by default the origin of the model. If
        this was read from a file of others, the card quotes it, so that Markdown and
        HTML in it have no effect.

    Raises:
      JcmError: if the folder has files or cannot be written, or if the form cannot
        express the model, so that it could not be loaded. Nothing is then written.
    """
    if not (isinstance(model, Model) and isinstance(path, str | os.PathLike)):
        raise JcmError(
            "save takes the model first, and then the folder: jcm.save(model, folder)"
        )
    if to not in FORMS:
        raise JcmError(f"to={to!r}: use one of {', '.join(FORMS)}")
    precond = model.denoiser.precond
    if to == "diffusers" and not isinstance(precond, Consistency):
        raise JcmError(
            "diffusers has a pipeline for consistency models only: use to='jcm'"
        )
    arch = model.denoiser.network.arch
    about = dataclasses.replace(
        model.about,
        licence=licence or model.about.licence,
        notes=notes or model.about.notes,
        trusted=bool(notes) or model.about.trusted,
        scores=model.scores,
    )
    text = card.markdown(_sentence(model), to, model.config, about)
    exported = _exported(model, about)
    _check(model, exported)
    if isinstance(precond, Consistency) and to == "diffusers":
        noise = model.config.noise.to_dict()
        diffusers_folder.write(path, arch, model.params, noise, precond.levels, text)
    else:
        folder.write(path, exported, text)


def _exported(model: Model, about: card.About) -> folder.Exported:
    """Returns what the folder of a model holds."""
    arch = model.denoiser.network.arch
    config = model.config.to_dict()
    if not about.trained:
        data = {"image_size": arch.image_size, "channels": arch.image_channels}
        config = {name: config[name] for name in _SECTIONS} | {"data": data}
    return folder.Exported(
        params={
            jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(model.params)
        },
        config=config,
        class_names=model.class_names,
        step=model.step,
        about=about,
    )


def _check(model: Model, exported: folder.Exported) -> None:
    """Checks that what a folder holds describes the model.

    Raises:
      JcmError: if not, as for a model that was made of parts that do not fit.
    """
    remedy = "create it with the config and class_names that it was made with"
    try:
        stored = json.loads(json.dumps(exported.config))
        as_read = dataclasses.replace(exported, config=stored)
        denoiser, _, _ = loading.parts(as_read)
    except Exception as error:  # a config that was made by hand can be anything
        raise JcmError(
            f"the model cannot be saved ({one_line(error)}): {remedy}"
        ) from error
    ours, theirs = model.denoiser, denoiser
    if (ours.precond, ours.network.arch) != (theirs.precond, theirs.network.arch):
        raise JcmError(
            f"the model cannot be saved, since its config describes another: {remedy}"
        )


def _sentence(model: Model) -> str:
    """Returns a sentence that describes the model, for its card."""
    arch = model.denoiser.network.arch
    made = "" if model.step is None else f", of step {model.step:,} of its training"
    classes = f" of {arch.num_classes} classes" if arch.num_classes else ""
    return (
        f"A {model.kind} model of {arch.image_size}x{arch.image_size} images{classes}:"
        f" {networks.describe(arch)['name']} with {networks.count(model.params):,}"
        f" parameters{made}."
    )
