"""The checkpoints that OpenAI published with Song et al. 2023, by name.

Addresses and two-step noise levels are from the READMEs and scripts of
openai/consistency_models and openai/consistency_models_cifar10. No hashes were
published.
"""

import dataclasses
import os
import pathlib

from jcm.runtime import cache, download, first_read
from jcm.runtime.errors import JcmError, nearest

_PUBLISHER = "openai/"
# A published name must be at least so similar to a wrong one to be suggested.
_SIMILAR = 0.8
_BASE = "https://openaipublic.blob.core.windows.net/consistency/"


@dataclasses.dataclass(frozen=True)
class Released:
    """A published checkpoint.

    Attributes:
      file: its address below the publisher's folder.
      data: name of the data set.
      image_size: height and width of the images.
      method: name of the training method.
      kind: "diffusion" or "consistency".
      fid: published FID by the number of network evaluations.
      sigmas: published noise levels for two-step sampling; empty if there are none, as
        for a diffusion model.
      levels: number of noise levels at the end of the training of a consistency model;
        None for a diffusion model.
      licence: licence of the release.
    """

    file: str
    data: str
    image_size: int
    method: str
    kind: str
    fid: dict[int, float]
    sigmas: tuple[float, ...]
    levels: int | None
    licence: str

    @property
    def steps(self) -> int | None:
        """Points of the noise grid; Heun's method evaluates a diffusion model twice."""
        return (max(self.fid) + 1) // 2 if self.kind == "diffusion" else None


# Data sets by the word for them in the name of a checkpoint.
_DATA = {
    "cifar10": ("CIFAR-10", 32),
    "imagenet64": ("ImageNet 64x64, by class", 64),
    "bedroom256": ("LSUN Bedroom 256x256", 256),
    "cat256": ("LSUN Cat 256x256", 256),
}
_METHODS = {
    "edm": "EDM",
    "cd": "consistency distillation",
    "ct": "consistency training",
    "ccd": "continuous-time consistency distillation",
    "cct": "continuous-time consistency training",
}
# From tables 1 and 2 of Song et al. 2023, by the number of network evaluations.
_FID = {
    "edm-cifar10": {35: 2.04},
    "cd-cifar10-lpips": {1: 3.55, 2: 2.93},
    "ct-cifar10-lpips": {1: 8.70, 2: 5.83},
    "edm-imagenet64": {79: 2.44},
    "cd-imagenet64-lpips": {1: 6.20, 2: 4.70},
    "ct-imagenet64": {1: 13.0, 2: 11.1},
    "edm-bedroom256": {79: 3.57},
    "cd-bedroom256-lpips": {1: 7.80, 2: 5.22},
    "ct-bedroom256": {1: 16.0, 2: 7.85},
    "edm-cat256": {79: 6.69},
    "cd-cat256-lpips": {1: 11.0, 2: 8.84},
    "ct-cat256": {1: 20.7, 2: 11.7},
}
# The second of the two noise levels in the original scripts.
_SECOND = {
    "cd-cifar10-lpips": 0.5853,
    "cd-imagenet64-l2": 1.3824,
    "cd-imagenet64-lpips": 1.3824,
    "ct-imagenet64": 1.9128,
    "cd-bedroom256-l2": 3.5197,
    "cd-bedroom256-lpips": 4.3656,
    "ct-bedroom256": 3.9912,
    "ct-cat256": 5.2485,
}


def _jax(folder: str, number: int) -> str:
    return f"jcm_checkpoints/{folder}/checkpoints/checkpoint_{number}"


_FILES = {
    "edm-cifar10": "jcm_checkpoints/edm_cifar10_ema",
    "cd-cifar10-l1": _jax("cd-l1", 80),
    "cd-cifar10-l2": _jax("cd-l2", 80),
    "cd-cifar10-lpips": _jax("cd-lpips", 80),
    "ct-cifar10-lpips": _jax("ct-lpips", 74),
    "ccd-cifar10-l2": _jax("cifar10-continuous-cd-l2", 40),
    "ccd-cifar10-l2-stopgrad": _jax("cifar10-continuous-cd-l2-stopgrad", 40),
    "ccd-cifar10-lpips-stopgrad": _jax("cifar10-continuous-cd-lpips-stopgrad", 40),
    "cct-cifar10-l2": _jax("continuous-ct-l2", 80),
    "cct-cifar10-lpips": _jax("continuous-ct-lpips", 40),
    "edm-imagenet64": "edm_imagenet64_ema.pt",
    "cd-imagenet64-l2": "cd_imagenet64_l2.pt",
    "cd-imagenet64-lpips": "cd_imagenet64_lpips.pt",
    "ct-imagenet64": "ct_imagenet64.pt",
    "edm-bedroom256": "edm_bedroom256_ema.pt",
    "cd-bedroom256-l2": "cd_bedroom256_l2.pt",
    "cd-bedroom256-lpips": "cd_bedroom256_lpips.pt",
    "ct-bedroom256": "ct_bedroom256.pt",
    "edm-cat256": "edm_cat256_ema.pt",
    "cd-cat256-l2": "cd_cat256_l2.pt",
    "cd-cat256-lpips": "cd_cat256_lpips.pt",
    "ct-cat256": "ct_cat256.pt",
}


# N at the end of the training (Song et al. 2023, Table 3), also by data set.
_LEVELS: dict[str | tuple[str, str], int] = {
    "cd": 40,
    ("cd", "cifar10"): 18,
    "ct": 151,
    ("ct", "imagenet64"): 201,
}


def _released(name: str) -> Released:
    method, data, *_ = name.split("-")
    return Released(
        _FILES[name],
        *_DATA[data],
        method=_METHODS[method],
        kind="diffusion" if method == "edm" else "consistency",
        fid=_FID.get(name, {}),
        sigmas=(80.0, _SECOND[name]) if name in _SECOND else (),
        levels=_LEVELS.get((method, data), _LEVELS.get(method)),
        # The JAX release (CIFAR-10) and the PyTorch release have different licences.
        licence="apache-2.0" if data == "cifar10" else "mit",
    )


RELEASED = {f"{_PUBLISHER}{name}": _released(name) for name in _FILES}


def is_name(source: str | os.PathLike) -> bool:
    """Returns whether this is meant as the name of a published checkpoint.

    An existing path takes precedence over a name.
    """
    return str(source).startswith(_PUBLISHER) and not os.path.exists(source)


def is_here(name: str) -> bool:
    """Returns whether a published checkpoint has been downloaded."""
    return name in RELEASED and _place(name).exists()


def _place(name: str) -> pathlib.Path:
    file = pathlib.PurePosixPath(RELEASED[name].file).name
    return cache.folder("pretrained") / name / file


def fetch(name: str) -> pathlib.Path:
    """Returns the file of a published checkpoint, which is downloaded at first use.

    Files are kept in `$JCM_CACHE/pretrained`, by default ~/.cache/jcm/pretrained.

    Raises:
      JcmError: if the name is unknown or the file cannot be downloaded. The message
        states which file to put where.
    """
    if name not in RELEASED:
        raise _unknown(name)
    url = _BASE + RELEASED[name].file
    target = _place(name)
    return download.fetch(
        url, target, "", f"download {url} elsewhere and put it at {target}"
    )


def _unknown(name: str) -> JcmError:
    """Returns the error for a name under which no checkpoint is published."""
    # Such as openai/diffusers-cd_imagenet64_l2, in the documentation of diffusers.
    twin = name.replace(f"{_PUBLISHER}diffusers-", _PUBLISHER).replace("_", "-")
    if twin in RELEASED:
        return JcmError(
            f"{name} is a repository of the Hugging Face Hub, from which jcm does not"
            f" download: use {twin}, which has the same weights"
        )
    near = nearest(name.lower(), RELEASED, _SIMILAR)
    remedy = f"did you mean {near}?" if near else f"use one of {', '.join(RELEASED)}"
    return JcmError(f"{name!r} is no published model: {remedy}")


def notes(name: str, file: first_read.Download) -> str:
    """Describes a published checkpoint in Markdown, for a model card.

    Args:
      name: of the checkpoint.
      file: what is known of its file.
    """
    found = RELEASED[name]
    evaluations = "; ".join(
        f"{fid} in {count} network evaluation{'s' if count > 1 else ''}"
        for count, fid in found.fid.items()
    )
    publication = (
        f"published by OpenAI with Song et al. 2023, *Consistency Models*, at"
        f" {_BASE}{found.file}"
    )
    if file.fetched:
        origin = f"The weights are `{name}`, {publication}."
    else:
        origin = (
            f"The weights are from a file that is taken for `{name}`, {publication};"
            " jcm did not download it."
        )
    return (
        f"{origin} Data: {found.data}. Method: {found.method}."
        f" Published FID: {evaluations or 'none'}. No hash was published to compare"
        f" the file with; its SHA-256 is `{file.sha256}`."
    )
