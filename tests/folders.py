"""Helpers that make folders of pictures, and configs of such data sets."""

import sys

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jcm.data import formats


def of_folder(config, path, image_size=8, channels=3, **changes):
    return ConfigDict(
        {
            **config,
            "name": "image_folder",
            "path": str(path),
            "image_size": image_size,
            "channels": channels,
            **changes,
        }
    )


def picture(seed=0, size=(8, 8), channels=3):
    shape = (size[1], size[0], channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, seed=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, size)).save(path)


def with_package(monkeypatch, request, package):
    """Installs a stand-in for pillow-heif during a test; None removes the package."""
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    for cached in (formats.decoded, formats.suffixes):
        cached.cache_clear()
        request.addfinalizer(cached.cache_clear)
