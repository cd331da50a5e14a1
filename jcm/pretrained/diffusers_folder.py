"""Consistency models as folders of diffusers, for its `ConsistencyModelPipeline`.

model_index.json                       the classes of diffusers in the pipeline
unet/config.json                       sizes of the UNet2DModel; see `diffusers_unet`
unet/diffusion_pytorch_model.safetensors    its weights
scheduler/scheduler_config.json        noise levels
SHA256SUMS                             hashes of these files, which diffusers ignores
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jcm.networks import Params, adm
from jcm.networks.sizes import UNetSizes
from jcm.pretrained import diffusers_unet, torch_file
from jcm.runtime import files, hashes, json_files
from jcm.runtime.errors import JcmError, one_line

_INDEX, _UNET, _SCHEDULER = "model_index.json", "unet", "scheduler"
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model"
_SCHEDULER_CONFIG = "scheduler_config.json"
_PIPELINE = "ConsistencyModelPipeline"
_SOLVER = "CMStochasticIterativeScheduler"
_NOISE = ("sigma_min", "sigma_max", "sigma_data", "rho")
_LEVELS = "num_train_timesteps"
# Far more than any model has. The published ones have noise up to 80 and 201 levels.
_LARGEST_NOISE, _MOST = 1e9, 2**20


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The content of a folder.

    Attributes:
      arch: sizes of the network.
      tensors: tensors of the UNet2DModel, by name.
      noise: `config.noise` according to the scheduler; empty if there is none.
      levels: number of noise levels according to the scheduler; None if there is none.
    """

    arch: adm.Architecture
    tensors: Mapping[str, np.ndarray]
    noise: dict[str, float]
    levels: int | None


def is_pipeline(path: str | os.PathLike) -> bool:
    """Returns whether a folder looks like a pipeline or the `unet` folder of one."""
    path = pathlib.Path(path)
    return any(
        place.is_file() for place in (path / _INDEX, path / _UNET / _CONFIG)
    ) or any(path.glob(f"{_WEIGHTS}*"))


def read(path: str | os.PathLike) -> Pipeline:
    """Reads a pipeline, or the `unet` folder of one.

    Raises:
      JcmError: if files are missing or incomplete, it is another pipeline, or the
        network is not an ADM.
    """
    path = pathlib.Path(path)
    noise: dict[str, float] = {}
    levels = None
    if (path / _INDEX).is_file():
        name = _json(path / _INDEX).get("_class_name")
        if name != _PIPELINE:
            raise JcmError(f"{path} is a {name}: only a {_PIPELINE} can be read")
        noise, levels = _noise(path / _SCHEDULER / _SCHEDULER_CONFIG)
    if (path / _UNET / _CONFIG).is_file():
        path /= _UNET
    config = _json(path / _CONFIG)
    try:
        arch = diffusers_unet.architecture(config)
    except JcmError as error:
        raise JcmError(f"{path / _CONFIG}: {error}") from error
    except Exception as error:  # A config of others can be wrong in any way.
        raise JcmError(
            f"{path / _CONFIG} does not describe a {diffusers_unet.CLASS}"
            f" ({one_line(error, 200)}): copy it again"
        ) from error
    return Pipeline(arch, _tensors(path), noise, levels)


def names(path: str | os.PathLike) -> list[str]:
    """Returns the files that `read` reads, relative to the folder.

    Raises:
      JcmError: if there are several files of weights, of which none is preferred.
    """
    path = pathlib.Path(path)
    found = [f"{_SCHEDULER}/{_SCHEDULER_CONFIG}"] if (path / _INDEX).is_file() else []
    unet = path / _UNET if (path / _UNET / _CONFIG).is_file() else path
    places = [path / _INDEX, unet / _CONFIG, _weights(unet)]
    found += [str(place.relative_to(path)) for place in places if place.is_file()]
    return found


def write(
    path: str | os.PathLike,
    arch: UNetSizes,
    params: Params,
    noise: Mapping[str, float],
    levels: int,
    card: str,
) -> None:
    """Writes a pipeline that `ConsistencyModelPipeline.from_pretrained` opens.

    Args:
      path: the folder, new or empty.
      arch: sizes of the network.
      params: parameters of the network.
      noise: `config.noise`.
      levels: number of noise levels of the grid that the model was trained on.
      card: the model card, in Markdown.

    Raises:
      JcmError: if diffusers has no such network, or the folder cannot be written.
    """
    if not isinstance(arch, adm.Architecture):
        raise JcmError(
            "diffusers has no NCSN++ with an input pyramid: only an ADM can be saved"
            " for it"
        )
    config = diffusers_unet.config_of(arch)
    diffusers_unet.check(arch, config)
    tensors = diffusers_unet.tensors_of(arch, params)
    path = files.new_folder(path)
    scheduler = {
        "_class_name": _SOLVER,
        "_diffusers_version": diffusers_unet.VERSION,
        "clip_denoised": True,
        _LEVELS: levels,
        "s_noise": 1.0,
        **{key: float(noise[key]) for key in _NOISE},
    }
    index = {
        "_class_name": _PIPELINE,
        "_diffusers_version": diffusers_unet.VERSION,
        _SCHEDULER: ["diffusers", _SOLVER],
        _UNET: ["diffusers", diffusers_unet.CLASS],
    }
    files.write_text(path / "README.md", card)
    files.write_json(path / _SCHEDULER / _SCHEDULER_CONFIG, scheduler)
    files.write_json(path / _UNET / _CONFIG, config)
    files.write_tensors(
        path / _UNET / f"{_WEIGHTS}.safetensors",
        tensors,
        {"format": "pt"},  # diffusers requires this note.
    )
    files.write_json(path / _INDEX, index)
    hashes.write_folder(path)


def _tensors(folder: pathlib.Path) -> Mapping[str, np.ndarray]:
    """Reads the weights of a `unet` folder."""
    path = _weights(folder)
    return torch_file.load(path) if path.suffix == ".bin" else files.read_tensors(path)


def _weights(folder: pathlib.Path) -> pathlib.Path:
    """Returns the weights of a `unet` folder; the unnamed variant takes precedence."""
    found = sorted(folder.glob(f"{_WEIGHTS}*.safetensors"))
    plain = folder / f"{_WEIGHTS}.safetensors"
    if plain in found or not found:
        old = folder / f"{_WEIGHTS}.bin"
        return old if old.exists() and not found else plain
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise JcmError(
            f"{folder} has {names}: keep one, or save the one to use as {plain.name}"
        )
    return found[0]


def _noise(path: pathlib.Path) -> tuple[dict[str, float], int | None]:
    """Reads `config.noise`, and the number of noise levels if it is stated."""
    config = _json(path)
    found = {key: config[key] for key in _NOISE if key in config}
    if any(
        type(value) not in (int, float) or not 0 < value < _LARGEST_NOISE
        for value in found.values()
    ):
        raise JcmError(f"{path}: noise levels must be above 0: copy it again")
    levels = config.get(_LEVELS)
    if levels is not None and (type(levels) is not int or not 2 <= levels < _MOST):
        raise JcmError(f"{path}: {_LEVELS} must be at least 2: copy it again")
    return {key: float(value) for key, value in found.items()}, levels


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json_files.read(path, dict[str, Any], "copy it again")
    except FileNotFoundError as error:
        raise JcmError(str(error)) from error
