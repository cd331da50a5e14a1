"""Other people's checkpoints: whatever the format, a network and its parameters."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jcm import networks
from jcm.networks import Network, Params, UNetSizes, adm, ncsnpp
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
from jcm.runtime.errors import JcmError, one_line

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
      steps: points of the noise grid that its publisher samples with, if any.
      noise: fields of `config.noise` that it tells.
      class_names: what the labels 0, 1, ... mean.
      notes: where it comes from, in Markdown; empty where nobody says.
      licence: its name; empty where nobody says.
    """

    network: Network
    params: Params
    kind: str
    step: int | None = None
    sigmas: tuple[float, ...] = ()
    steps: int | None = None
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    notes: str = ""
    licence: str = ""


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
    path, published = pathlib.Path(source), None
    if released.is_name(source):
        path = released.fetch(str(source))
        published = released.RELEASED[str(source)]
        for field in ("kind", "image_size"):
            given, known = getattr(hints, field), getattr(published, field)
            if given not in (None, known):
                raise JcmError(f"{field}={given!r}: {source} has {known!r}")
        hints = dataclasses.replace(
            hints, kind=published.kind, image_size=published.image_size
        )
    if hints.kind not in (None, *_KINDS):
        raise JcmError(f"kind={hints.kind!r}: use one of {', '.join(_KINDS)}")
    try:
        if path.is_dir():
            found = _read_diffusers(path, hints, ema)
        else:
            reader = _read_torch if _is_torch(path) else _read_flax
            found = reader(path, hints, ema)
    except JcmError:
        raise
    except Exception as error:  # what anybody wrote can be wrong in any way
        reason = one_line(error, 200)
        raise JcmError(
            f"{path} is of no known network ({type(error).__name__}: {reason}): fetch"
            " it again"
        ) from error
    found = dataclasses.replace(found, kind=hints.kind or found.kind)
    if _is_imagenet(found.network.arch):
        found = dataclasses.replace(found, class_names=imagenet.class_names())
    if published is None:
        return found
    return dataclasses.replace(
        found,
        sigmas=published.sigmas,
        steps=published.steps,
        notes=released.notes(str(source)),
        licence=published.licence,
    )


def _is_imagenet(arch: UNetSizes) -> bool:
    """Whether it is the published network of ImageNet 64x64, OpenAI's or NVlabs'."""
    return (
        isinstance(arch, adm.Architecture)
        and (arch.num_classes, arch.image_size, arch.nf) == (1000, 64, 192)
        and arch.ch_mult == (1, 2, 3, 4)
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
    if not isinstance(network.arch, ncsnpp.Architecture):
        raise JcmError(f"{path} is of an NCSN++: set config.model.name=ncsnpp")

    def tree(theirs: Any) -> Params:
        flat = flax_file.flatten(theirs)
        return openai_jcm.params_from_original(flat, network.arch, network.shapes)

    try:
        if not {"step", "opt_state", "params", "params_ema"} <= found.keys():
            raise JcmError("it has weights alone: set config.init.state=False")
        moments = flax_file.part(flax_file.part(found, "opt_state"), "0")
        if not {"count", "mu", "nu"} <= moments.keys():
            raise JcmError("its opt_state is neither of RAdam nor of Adam")
        target = found.get("target_params")
        return Training(
            step=flax_file.count(found, "step"),
            params=tree(found["params"]),
            target_params=None if target is None else tree(target),
            ema_params=tree(found["params_ema"]),
            moments={
                "count": np.int32(flax_file.count(moments, "count")),
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
            " where you trust it, as docs/checkpoints.md shows, and load that"
        )
    if path.suffix == ".safetensors":
        raise JcmError(
            f"{path} has no config beside its tensors: name the folder it came in"
        )
    try:
        with path.open("rb") as file:
            start = file.read(2)
            named = path.suffix in (".pt", ".pth", ".bin")
            return named or start == b"PK" or start[:1] == b"\x80"
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
            found = nvlabs_edm.read(state)
            network = networks.build(found.arch)
            params = nvlabs_edm.params(found, network.shapes)
            return Checkpoint(network, params, "edm", notes=nvlabs_edm.NOTES)
        _refuse_hints(hints, "image_size", "num_heads", "head_channels")
        arch = openai_adm.architecture(
            state,
            image_size=hints.image_size,
            num_heads=hints.num_heads,
            head_channels=hints.head_channels,
        )
        network = networks.build(arch)
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
        _refuse_hints(hints, "image_size", "attn_resolutions")
        network, params = _network(found, ema, hints)
        step = flax_file.count(found, "step") if "step" in found else None
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    return Checkpoint(network, params, _kind_of(path), step)


def _network(
    found: Mapping[str, Any], ema: str, hints: Hints
) -> tuple[Network, Params]:
    """The network of a checkpoint of the original JAX code."""
    if ema not in found:
        raise JcmError(f"it has no {ema}: choose other weights by ema=...")
    flat = flax_file.flatten(flax_file.part(found, ema))
    arch = openai_jcm.architecture(
        flat, image_size=hints.image_size, attn_resolutions=hints.attn_resolutions
    )
    network = networks.build(arch)
    return network, openai_jcm.params_from_original(flat, arch, network.shapes)


def _read_diffusers(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    if ema:
        raise JcmError(f"{path} holds one set of weights: drop ema={ema!r}")
    found = diffusers_folder.read(path)
    try:
        _refuse_hints(hints)
        network = networks.build(found.arch)
        params = diffusers_folder.params(found, network.shapes)
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    return Checkpoint(network, params, "consistency", noise=found.noise)


def _refuse_hints(hints: Hints, *taken: str) -> None:
    """What a format tells by itself, or has not, is not to be said."""
    given = [name for name, value in vars(hints).items() if value is not None]
    unused = [name for name in given if name not in ("kind", *taken)]
    if unused:
        raise JcmError(f"{', '.join(unused)}: drop it, such a file tells by itself")
