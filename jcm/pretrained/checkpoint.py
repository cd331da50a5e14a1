"""Other people's checkpoints: whatever the format, a network and its parameters."""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jcm import models
from jcm.errors import JcmError
from jcm.models import Network, Params, ncsnpp
from jcm.pretrained import (
    diffusers_folder,
    flax_file,
    imagenet,
    nvlabs_edm,
    openai_adm,
    openai_jcm,
    released,
    torch_file,
)

_KINDS = ("edm", "consistency")
# Parameters that a checkpoint of the original JAX code may have.
_WEIGHTS = ("params_ema", "params", "target_params")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file or folder holds.

    Attributes:
      network: F.
      params: its parameters.
      kind: "edm" or "consistency".
      step: how many training steps made them; None where the file does not tell.
      sigmas: noise levels that its publisher samples with, if any.
      noise: fields of `config.noise` that it tells.
      class_names: what the labels 0, 1, ... mean.
      notes: where it comes from, in Markdown; empty where nobody says.
    """

    network: Network
    params: Params
    kind: str
    step: int | None = None
    sigmas: tuple[float, ...] = ()
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    notes: str = ""


@dataclasses.dataclass(frozen=True)
class Training:
    """Where the original's training stood, beside the weights.

    Attributes:
      step: optimiser steps done.
      params: of the student.
      target_params: of the target; None where the file has none.
      ema_params: of the average.
      moments: of the optimiser: count, and mu and nu as trees like `params`.
    """

    step: int
    params: Params
    target_params: Params | None
    ema_params: Params
    moments: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a file may not tell; None takes what was published.

    Attributes:
      kind: "edm" or "consistency"; by default by the name of the file, and
        consistency unless that begins with edm.
      image_size: height and width.
      attn_resolutions: NCSN++: image sizes with attention.
      num_heads: ADM: attention heads of each layer.
      head_channels: ADM: channels of each head.
    """

    kind: str | None = None
    image_size: int | None = None
    attn_resolutions: tuple[int, ...] | None = None
    num_heads: int | None = None
    head_channels: int | None = None


def is_checkpoint(source: str | os.PathLike) -> bool:
    """Whether something is a file, a published name or a folder of diffusers."""
    return (
        released.is_name(source)
        or pathlib.Path(source).is_file()
        or diffusers_folder.is_pipeline(source)
    )


def read(source: str | os.PathLike, hints: Hints, ema: str = "") -> Checkpoint:
    """Opens a file or folder of others, or a published model by its name.

    Args:
      source: a name such as openai/cd-cifar10-lpips; a checkpoint of the original JAX
        code (msgpack); a PyTorch state dict (.pt) of the original ADM, or of the
        networks of NVlabs/edm; a folder of diffusers' ConsistencyModelPipeline.
      hints: what the file may not tell.
      ema: params_ema (the default), params or target_params, where a file has several.

    Raises:
      JcmError: for a file of another kind, or one that does not fit; nothing that it
        names is ever run.
    """
    published = None
    path = pathlib.Path(source)
    if released.is_name(source):
        path = released.fetch(str(source))
        published = released.RELEASED[str(source)]
        hints = dataclasses.replace(hints, kind=hints.kind or published.kind)
    if hints.kind not in (None, *_KINDS):
        raise JcmError(f"kind={hints.kind!r}: use one of {', '.join(_KINDS)}")
    if path.is_dir():
        reader = _read_diffusers
    else:
        reader = _read_torch if _is_torch(path) else _read_flax
    found = reader(path, hints, ema)
    found = dataclasses.replace(found, kind=hints.kind or found.kind)
    if found.network.arch.num_classes == len(imagenet.class_names()):
        found = dataclasses.replace(found, class_names=imagenet.class_names())
    if published is None:
        return found
    return dataclasses.replace(
        found, sigmas=published.sigmas, notes=released.notes(str(source))
    )


def read_training(source: str | os.PathLike, network: Network) -> Training:
    """All that a checkpoint of the original JAX code knows of its training.

    Args:
      source: a file, or a published name.
      network: which it shall be of.

    Raises:
      JcmError: for another file, or one that does not fit.
    """
    path = pathlib.Path(source)
    if released.is_name(source):
        path = released.fetch(str(source))
    if path.is_dir() or _is_torch(path):
        raise JcmError(
            f"{source} has weights but no optimiser: begin anew from the weights, with"
            " config.init.state=False"
        )
    found = flax_file.load(path, ("step", "opt_state", *_WEIGHTS))

    def tree(theirs: Any) -> Params:
        flat = flax_file.flatten(theirs)
        return openai_jcm.params_from_original(flat, network.arch, network.shapes)

    try:
        if not isinstance(network.arch, ncsnpp.Architecture):
            raise JcmError("it is of an NCSN++: set config.model.name=ncsnpp")
        if not {"step", "opt_state", "params", "params_ema"} <= found.keys():
            raise JcmError("it has weights alone: set config.init.state=False")
        moments = found["opt_state"].get("0", {})
        if not {"count", "mu", "nu"} <= moments.keys():
            raise JcmError("its opt_state is neither of RAdam nor of Adam")
        target = found.get("target_params")
        return Training(
            step=int(found["step"]),
            params=tree(found["params"]),
            target_params=None if target is None else tree(target),
            ema_params=tree(found["params_ema"]),
            moments={
                "count": np.int32(moments["count"]),
                "mu": tree(moments["mu"]),
                "nu": tree(moments["nu"]),
            },
        )
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error


def _is_torch(path: pathlib.Path) -> bool:
    """Whether a file is PyTorch's; refuses what is never opened."""
    if path.suffix == ".pkl":
        raise JcmError(
            f"{path} runs code when it is opened: write its state dict to a .pt file,"
            " where you trust it, as README.md shows, and load that"
        )
    if path.suffix == ".safetensors":
        raise JcmError(
            f"{path} has no config beside its tensors: name the folder it came in"
        )
    try:
        with path.open("rb") as file:
            start = file.read(1)
            return start == b"\x80" or zipfile.is_zipfile(file)
    except OSError as error:
        raise JcmError(f"cannot read {path}: {error.strerror}") from error


def _kind_of(path: pathlib.Path) -> str:
    return "edm" if path.name.startswith("edm") else "consistency"


def _read_torch(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    if ema:
        raise JcmError(f"{path} holds one set of weights: drop ema={ema!r}")
    state = torch_file.load(path)
    try:
        if nvlabs_edm.is_edm(state):
            _refuse_hints(hints)
            arch, state = nvlabs_edm.read(state)
            network = models.build(arch)
            params = nvlabs_edm.params(state, arch, network.shapes)
            return Checkpoint(network, params, "edm")
        arch = openai_adm.architecture(
            state,
            image_size=hints.image_size,
            num_heads=hints.num_heads,
            head_channels=hints.head_channels,
        )
        network = models.build(arch)
        params = openai_adm.params(state, arch, network.shapes)
        return Checkpoint(network, params, _kind_of(path))
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error


def _read_flax(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    ema = ema or "params_ema"
    if ema not in _WEIGHTS:
        raise JcmError(f"ema={ema!r} is unknown: use one of {', '.join(_WEIGHTS)}")
    found = flax_file.load(path, (ema, "step"))
    try:
        network, params = _network(found, ema, hints)
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    step = found.get("step")
    return Checkpoint(
        network, params, _kind_of(path), None if step is None else int(step)
    )


def _network(
    found: Mapping[str, Any], ema: str, hints: Hints
) -> tuple[Network, Params]:
    """The network of a checkpoint of the original JAX code."""
    if ema not in found:
        raise JcmError(f"it has no {ema}: choose other weights by ema=...")
    flat = flax_file.flatten(found[ema])
    arch = openai_jcm.architecture(
        flat, image_size=hints.image_size, attn_resolutions=hints.attn_resolutions
    )
    network = models.build(arch)
    return network, openai_jcm.params_from_original(flat, arch, network.shapes)


def _read_diffusers(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    if ema:
        raise JcmError(f"{path} holds one set of weights: drop ema={ema!r}")
    _refuse_hints(hints)
    found = diffusers_folder.read(path)
    network = models.build(found.arch)
    try:
        params = diffusers_folder.params(found, network.shapes)
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    return Checkpoint(network, params, "consistency", noise=found.noise)


def _refuse_hints(hints: Hints) -> None:
    """For what tells its whole architecture."""
    given = [name for name, value in vars(hints).items() if value is not None]
    unused = [name for name in given if name != "kind"]
    if unused:
        raise JcmError(f"it tells by itself: drop {', '.join(unused)}")
