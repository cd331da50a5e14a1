"""Saving of models as folders to share: `jcm.save`."""

import dataclasses
import os

import jax
import numpy as np

from jcm import networks
from jcm.model import card, folder
from jcm.model.model import Model
from jcm.pretrained import diffusers_folder
from jcm.runtime.arguments import explained
from jcm.runtime.errors import JcmError

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
      notes: for the model card, in Markdown; by default the origin of the model.

    Raises:
      JcmError: if the folder has files or cannot be written, or if diffusers has no
        such model.
    """
    if not (isinstance(model, Model) and isinstance(path, str | os.PathLike)):
        raise JcmError(
            "save takes the model first, and then the folder: jcm.save(model, folder)"
        )
    if to not in FORMS:
        raise JcmError(f"to={to!r}: use one of {', '.join(FORMS)}")
    if to == "diffusers" and model.kind != "consistency":
        raise JcmError(
            "diffusers has a pipeline for consistency models only: use to='jcm'"
        )
    arch = model.denoiser.network.arch
    about = dataclasses.replace(
        model.about,
        licence=licence or model.about.licence,
        notes=notes or model.about.notes,
        scores=model.scores,
    )
    text = card.markdown(_sentence(model), to, model.config, about)
    if to == "diffusers":
        noise = model.config.noise.to_dict()
        diffusers_folder.write(path, arch, model.params, noise, text)
        return
    config = model.config.to_dict()
    if not about.trained:
        data = {"image_size": arch.image_size, "channels": arch.image_channels}
        config = {name: config[name] for name in _SECTIONS} | {"data": data}
    exported = folder.Exported(
        params={
            jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(model.params)
        },
        config=config,
        class_names=model.class_names,
        step=model.step,
        about=about,
    )
    folder.write(path, exported, text)


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
