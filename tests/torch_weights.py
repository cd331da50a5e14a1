"""Weights for networks of others, which their code and ours can use."""

import functools
import io
import json
import pathlib
import pickle
import zipfile

import numpy as np
from paths import DATA


@functools.cache
def random(network: str, seed: int) -> dict[str, np.ndarray]:
    """Returns a random state dict of the published shapes, as for `networks.npz`."""
    shapes = json.loads((DATA / "networks_shapes.json").read_text())[network]
    rng, made = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        shape = shapes[name]
        value = rng.standard_normal(shape)
        part = name.rpartition(".")[2]
        if part == "running_var":
            value = 0.5 + np.abs(value)
        elif part == "weight" and len(shape) > 1:
            value *= np.sqrt(2 / np.prod(shape[1:]))
        else:
            value = (part == "weight") + 0.1 * value
        made[name] = value.astype(np.float32)
    return made


def lpips_vgg() -> dict[str, np.ndarray]:
    """Returns random weights of VGG16 and heads of LPIPS, named as in torchvision."""
    rng, made, width, index = np.random.RandomState(777), {}, 3, 0
    for layers, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(layers):
            scale = np.sqrt(2 / (9 * width))
            kernel = (rng.standard_normal((3, 3, width, channels)) * scale).astype("f4")
            made[f"features.{index}.weight"] = kernel.transpose(3, 2, 0, 1)
            bias = 0.05 * rng.standard_normal((channels,))
            made[f"features.{index}.bias"] = bias.astype("f4")
            width, index = channels, index + 2
        index += 1
    for index, channels in enumerate((64, 128, 256, 512, 512)):
        head = 0.1 * np.abs(rng.standard_normal((1, 1, channels, 1)))
        made[f"head{index}"] = head.ravel().astype("f4")
    return made


@functools.cache
def theirs(prefix: str) -> dict[str, np.ndarray]:
    """Returns the results of the PyTorch code: the arrays of `networks.npz`."""
    with np.load(DATA / "networks.npz") as file:
        return {
            name.removeprefix(f"{prefix}/"): file[name]
            for name in file.files
            if name.startswith(f"{prefix}/")
        }


def save(path: pathlib.Path, state: dict[str, np.ndarray]) -> pathlib.Path:
    """Writes float32 arrays as `torch.save` writes a state dict of tensors."""
    content = io.BytesIO()
    pickler = _Pickler(content, 2)
    pickler.dump({name: np.asarray(array, "<f4") for name, array in state.items()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content.getvalue())
        for key, data in enumerate(pickler.storages):
            archive.writestr(f"archive/data/{key}", data)
    return path


class _Named:
    """Takes the place of a name of PyTorch, which is not installed."""

    def __init__(self, module: str, name: str):
        self.line = f"{module}\n{name}\n".encode()

    def __call__(self):
        raise AssertionError


class _Storage(bytes):
    """The storage of one tensor."""


class _Pickler(pickle._Pickler):
    """Pickles arrays as tensors."""

    def __init__(self, *args):
        super().__init__(*args)
        self.storages: list[bytes] = []

    def persistent_id(self, found):
        if not isinstance(found, _Storage):
            return None
        self.storages.append(found)
        kind = _Named("torch", "FloatStorage")
        return ("storage", kind, str(len(self.storages) - 1), "cpu", len(found) // 4)

    def save(self, found, save_persistent_id=True):
        if isinstance(found, _Named):
            self.write(pickle.GLOBAL + found.line)
        elif isinstance(found, np.ndarray):
            strides = tuple(step // 4 for step in np.ascontiguousarray(found).strides)
            storage = _Storage(found.tobytes())
            call = _Named("torch._utils", "_rebuild_tensor_v2")
            shape = found.shape
            self.save_reduce(
                call, (storage, 0, shape, strides[: len(shape)], False, {})
            )
        else:
            super().save(found, save_persistent_id)
