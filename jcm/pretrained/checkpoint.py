"""Other people's checkpoints: whatever the format, a network and its parameters."""

import dataclasses
import os
import pathlib
import zipfile

from jcm import models
from jcm.errors import JcmError
from jcm.models import Network, Params
from jcm.pretrained import flax_file, openai_adm, openai_jcm, released, torch_file

_KINDS = ("edm", "consistency")
# Parameters that a checkpoint of the original JAX code may have.
_WEIGHTS = ("params_ema", "params", "target_params")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
      network: F.
      params: its parameters.
      kind: "edm" or "consistency".
      step: how many training steps made them; None where the file does not tell.
      sigmas: noise levels that its publisher samples with, if any.
    """

    network: Network
    params: Params
    kind: str
    step: int | None = None
    sigmas: tuple[float, ...] = ()


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
    """Whether something is a file, or a published name, and not a workdir."""
    return released.is_name(source) or pathlib.Path(source).is_file()


def read(source: str | os.PathLike, hints: Hints, ema: str = "") -> Checkpoint:
    """Opens a file, or a published model by its name.

    Args:
      source: a name such as openai/cd-cifar10-lpips; a checkpoint of the original JAX
        code (msgpack); a PyTorch state dict of the original ADM (.pt).
      hints: what the file may not tell.
      ema: params_ema (the default), params or target_params, where a file has several.

    Raises:
      JcmError: for a file of another kind, or one that does not fit; nothing that it
        names is ever run.
    """
    published = released.Released("")
    if released.is_name(source):
        path = released.fetch(str(source))
        published = released.RELEASED[str(source)]
        hints = dataclasses.replace(hints, kind=hints.kind or published.kind)
    else:
        path = pathlib.Path(source)
    kind = hints.kind or ("edm" if path.name.startswith("edm") else "consistency")
    if kind not in _KINDS:
        raise JcmError(f"kind={kind!r}: use one of {', '.join(_KINDS)}")
    if path.suffix == ".pkl":
        raise JcmError(
            f"{path} runs code when it is opened: export its state dict with"
            " torch.save in an environment of its own, and load that"
        )
    try:
        with path.open("rb") as file:
            start = file.read(1)
            is_torch = start == b"\x80" or zipfile.is_zipfile(file)
    except OSError as error:
        raise JcmError(f"cannot read {path}: {error.strerror}") from error
    found = _read_torch(path, hints, ema) if is_torch else _read_flax(path, hints, ema)
    return dataclasses.replace(found, kind=kind, sigmas=published.sigmas)


def _read_torch(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    if ema:
        raise JcmError(f"{path} holds one set of weights: drop ema={ema!r}")
    state = torch_file.load(path)
    try:
        arch = openai_adm.architecture(
            state,
            image_size=hints.image_size,
            num_heads=hints.num_heads,
            head_channels=hints.head_channels,
        )
        network = models.build(arch)
        return Checkpoint(network, openai_adm.params(state, arch, network.shapes), "")
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error


def _read_flax(path: pathlib.Path, hints: Hints, ema: str) -> Checkpoint:
    ema = ema or "params_ema"
    if ema not in _WEIGHTS:
        raise JcmError(f"ema={ema!r} is unknown: use one of {', '.join(_WEIGHTS)}")
    found = flax_file.load(path, (ema, "step"))
    try:
        if ema not in found:
            raise JcmError(f"it has no {ema}: choose other weights by ema=...")
        flat = flax_file.flatten(found[ema])
        arch = openai_jcm.architecture(
            flat,
            image_size=hints.image_size,
            attn_resolutions=hints.attn_resolutions,
        )
        network = models.build(arch)
        params = openai_jcm.params_from_original(flat, arch, network.shapes)
    except JcmError as error:
        raise JcmError(f"{path}: {error}") from error
    step = found.get("step")
    return Checkpoint(network, params, "", None if step is None else int(step))
