"""Reads checkpoints of other projects as networks with parameters."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jcm import networks
from jcm.networks import Network, Params, adm
from jcm.networks.sizes import UNetSizes
from jcm.pretrained import (
    diffusers_folder,
    diffusers_unet,
    flax_file,
    formats,
    imagenet,
    nvlabs_edm,
    openai_adm,
    openai_jcm,
    released,
    torch_file,
)
from jcm.runtime import first_read, hashes
from jcm.runtime.arrays import LARGEST_WEIGHT, check_finite
from jcm.runtime.errors import JcmError, one_line

_KINDS = ("diffusion", "consistency")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a file or folder.

    Attributes:
      network: the network F.
      params: its parameters.
      kind: "diffusion" or "consistency".
      step: number of training steps; None if the file does not state it.
      sigmas: noise levels with which the publisher samples; empty if unknown.
      steps: points of the noise grid with which the publisher samples; None if unknown.
      levels: number of noise levels that a consistency model was trained on; None if
        unknown.
      noise: the fields of `config.noise` that the checkpoint states.
      class_names: the meaning of the labels 0, 1, ...; empty if unknown.
      notes: the origin of the weights, in Markdown; empty if unknown.
      licence: the name of the licence; empty if unknown.
    """

    network: Network
    params: Params
    kind: str
    step: int | None = None
    sigmas: tuple[float, ...] = ()
    steps: int | None = None
    levels: int | None = None
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    notes: str = ""
    licence: str = ""


@dataclasses.dataclass(frozen=True)
class Hints:
    """Settings that a file may leave open; None means those of the published models.

    Attributes:
      kind: "diffusion" or "consistency"; by default diffusion if the name of the file
        begins with edm, and consistency otherwise.
      image_size: height and width.
      attn_resolutions: image sizes with attention, for NCSN++.
      num_heads: attention heads of each layer, for ADM.
      head_channels: channels of each head, for ADM.
    """

    kind: str | None = None
    image_size: int | None = None
    attn_resolutions: tuple[int, ...] | None = None
    num_heads: int | None = None
    head_channels: int | None = None


def is_checkpoint(source: str | os.PathLike) -> bool:
    """Returns whether `source` is a file, a published name or a diffusers folder."""
    return (
        released.is_name(source)
        or pathlib.Path(source).is_file()
        or diffusers_folder.is_pipeline(source)
    )


def read(source: str | os.PathLike, hints: Hints, ema: str = "") -> Checkpoint:
    """Reads a checkpoint of another project, without running any code in it.

    Args:
      source: a published name such as openai/cd-cifar10-lpips; a checkpoint of the
        original JAX code (msgpack); a PyTorch state dict (.pt) of the original ADM or
        of a network of NVlabs/edm; a folder of diffusers' ConsistencyModelPipeline.
      hints: settings that the file may leave open.
      ema: params_ema (the default), params or target_params, if the file has several
        sets of weights.

    Raises:
      JcmError: if the format or the network is unknown, or the file is damaged or does
        not fit the hints.
    """
    path, published = pathlib.Path(source), None
    if released.is_name(source):
        path = released.fetch(str(source))
        published = released.RELEASED[str(source)]
        for field in ("kind", "image_size"):
            given, known = getattr(hints, field), getattr(published, field)
            if given not in (None, known):
                raise JcmError(
                    f"{field}={given!r}, but {source} has {known!r}: drop {field}"
                )
        hints = dataclasses.replace(
            hints, kind=published.kind, image_size=published.image_size
        )
    if hints.kind not in (None, *_KINDS):
        raise JcmError(f"kind={hints.kind!r}: use one of {', '.join(_KINDS)}")
    if published is None:
        with _comparing(path):
            return _read(path, hints, ema)
    whole = not formats.is_compared_by_reader(path)
    with first_read.comparing_download(path, whole) as download:
        found = _read(path, hints, ema)
    return dataclasses.replace(
        found,
        sigmas=published.sigmas,
        steps=published.steps,
        levels=published.levels,
        notes=released.notes(str(source), download()),
        licence=published.licence,
    )


def _comparing(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Returns a context that detects damage of the file or folder read in it."""
    if not path.is_dir():
        compared = formats.is_compared_by_reader(path)
        return first_read.comparing([] if compared else [path])
    names = diffusers_folder.names(path)
    record = path / hashes.NAME
    if record.is_file():
        remedy = f"copy it again, or delete {record} if it was changed on purpose"
        return hashes.comparing(record, names, remedy)
    return first_read.comparing([path / name for name in names])


def _read(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    try:
        if path.is_dir():
            found = _read_diffusers(path, hints, ema)
        else:
            reader = _read_torch if formats.is_torch(path) else _read_flax
            found = reader(path, hints, ema)
    except JcmError:
        raise
    except Exception as error:  # foreign files can be wrong in any way
        reason = one_line(error, 200)
        raise JcmError(
            f"{path} holds no known network ({type(error).__name__}: {reason}):"
            " download it again, or name another file"
        ) from error
    remedy = "use an earlier checkpoint, or copy the file again"
    try:
        check_finite(found.params, remedy, LARGEST_WEIGHT)
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    found = dataclasses.replace(found, kind=hints.kind or found.kind)
    if _is_imagenet(found.network.arch):
        found = dataclasses.replace(found, class_names=imagenet.class_names())
    return found


def _is_imagenet(arch: UNetSizes) -> bool:
    """Returns whether this is a published network of ImageNet 64x64."""
    return (
        isinstance(arch, adm.Architecture)
        and (arch.num_classes, arch.image_size, arch.nf) == (1000, 64, 192)
        and arch.ch_mult == (1, 2, 3, 4)
    )


def _kind_of(path: pathlib.Path) -> str:
    return "diffusion" if path.name.startswith("edm") else "consistency"


def _read_torch(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    _check_one_set(path, ema)
    state = torch_file.load(path)
    try:
        if nvlabs_edm.is_edm(state):
            _check_hints(hints)
            found = nvlabs_edm.read(state)
            network = networks.build_for(found.arch, len(state))
            params = nvlabs_edm.params(found, network.shapes)
            return Checkpoint(network, params, "diffusion", notes=nvlabs_edm.NOTES)
        _check_hints(hints, "image_size", "num_heads", "head_channels")
        arch = openai_adm.architecture(
            state,
            image_size=hints.image_size,
            num_heads=hints.num_heads,
            head_channels=hints.head_channels,
        )
        network = networks.build_for(arch, len(state))
        params = openai_adm.params(state, arch, network.shapes)
        return Checkpoint(network, params, _kind_of(path))
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error


def _read_flax(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    ema = ema or "params_ema"
    if ema not in openai_jcm.WEIGHTS:
        raise JcmError(
            f"ema={ema!r} is unknown: use one of {', '.join(openai_jcm.WEIGHTS)}"
        )
    wanted = (ema, "step")
    with first_read.comparing_blocks(path, wanted) as seen:
        found = flax_file.load(path, wanted, seen)
        try:
            return _from_flax(path, found, hints, ema)
        except JcmError as error:
            raise JcmError(f"{path}: {error}") from error


def _from_flax(
    path: pathlib.Path, found: dict[str, Any], hints: Hints, ema: str
) -> Checkpoint:
    _check_hints(hints, "image_size", "attn_resolutions")
    if ema not in found:
        raise JcmError(f"the file has no {ema}: choose other weights with ema=...")
    flat = flax_file.flatten(flax_file.part(found, ema))
    arch = openai_jcm.architecture(
        flat, image_size=hints.image_size, attn_resolutions=hints.attn_resolutions
    )
    network = networks.build_for(arch, len(flat))
    params = openai_jcm.params(flat, arch, network.shapes)
    step = flax_file.count(found, "step") if "step" in found else None
    return Checkpoint(network, params, _kind_of(path), step)


def _read_diffusers(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    _check_one_set(path, ema)
    found = diffusers_folder.read(path)
    try:
        _check_hints(hints)
        network = networks.build_for(found.arch, len(found.tensors))
        params = diffusers_unet.params(found.arch, found.tensors, network.shapes)
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    return Checkpoint(
        network, params, "consistency", levels=found.levels, noise=found.noise
    )


def _check_one_set(path: pathlib.Path, ema: str) -> None:
    """Raises JcmError if `ema` is given for a file with only one set of weights."""
    if ema:
        raise JcmError(f"{path} holds only one set of weights: drop ema={ema!r}")


def _check_hints(hints: Hints, *taken: str) -> None:
    """Raises JcmError if a hint is given that the format does not take."""
    given = [name for name, value in vars(hints).items() if value is not None]
    unused = [name for name in given if name not in ("kind", *taken)]
    if unused:
        raise JcmError(
            f"drop {', '.join(unused)}, which files of this format do not take"
        )
