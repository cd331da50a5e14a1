"""The reference: statistics of the real images, from a data set or a published file."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from jcm.data import Dataset
from jcm.metrics import frechet, statistics
from jcm.metrics.networks import FeatureNetwork
from jcm.metrics.statistics import Statistics
from jcm.runtime import cache, distributed, npz
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded

# The most real images whose rows are kept; scores of rows would take too long on more.
_MOST_ROWS = 50_000
# The features of Inception in published files, by the ends of the names of arrays.
_PUBLISHED = {"": "pool", "_s": "spatial"}


def of_dataset(
    network: FeatureNetwork, dataset: Dataset, wanted: set[str], rows: set[str]
) -> dict[str, Statistics]:
    """Computes the statistics of a data set, or reads them from `$JCM_CACHE/reference`.

    Every process must call it.

    Args:
      network: the network that computes the features.
      dataset: the real images. Its fingerprint is part of the names of the cached
        files, of which there is one for each feature. A damaged file is reported and
        replaced.
      wanted: names of the features.
      rows: names of the features whose rows are kept, for at most 50,000 images.
    """
    prefix = f"{dataset.fingerprint}-{network.version}"
    folder = cache.folder("reference")

    def path(name: str, with_rows: bool) -> pathlib.Path:
        return folder / f"{prefix}-{name}{'-rows' if with_rows else ''}.npz"

    known: dict[str, Statistics] = {}
    sizes = network.sizes((*2 * (dataset.image_size,), dataset.channels))
    for name in sorted(wanted):
        count = min(len(dataset), _MOST_ROWS) if name in rows else None
        # A file with rows also serves where no rows are needed.
        for with_rows in sorted({name in rows, True}):
            cached = _read(path(name, with_rows), sizes[name], len(dataset), count)
            # Machines have their own caches, so all processes must agree on it.
            if distributed.gather(np.bool_(cached is not None)).all() and cached:
                known[name] = cached
                break
    wanted, rows = wanted - set(known), rows - set(known)
    if not wanted:
        return known
    found = _compute(network, dataset, wanted, rows)
    for name, each in found.items():
        _write(path(name, name in rows), each)
    logging.info("saved statistics of %s in %s", dataset.name, folder)
    return known | found


def _compute(
    network: FeatureNetwork, dataset: Dataset, wanted: set[str], rows: set[str]
) -> dict[str, Statistics]:
    few = len(dataset) <= _MOST_ROWS
    title = f"{network.name} of {dataset.name}"
    found = statistics.collect(
        network,
        lambda indices: dataset.take(indices)["image"],
        len(dataset),
        wanted=wanted,
        rows=rows if few else (),
        title=title,
    )
    if rows and not few:
        chosen = np.random.default_rng(0).permutation(len(dataset))[:_MOST_ROWS]
        of_chosen = statistics.collect(
            network,
            lambda indices: dataset.take(chosen[indices])["image"],
            len(chosen),
            wanted=rows,
            rows=rows,
            title=f"{title}, {len(chosen)} images",
        )
        found |= {
            name: Statistics(found[name].moments, of_chosen[name].rows) for name in rows
        }
    return found


def published(
    path: str | os.PathLike,
    network: FeatureNetwork,
    sizes: Mapping[str, int],
    wanted: set[str],
    rows: set[str],
    size: int,
) -> dict[str, Statistics]:
    """Reads statistics of Inception's features from a published file.

    Args:
      path: an .npz with `mu` and `sigma` (EDM, clean-fid), or a reference batch of
        guided-diffusion, which also has `mu_s`, `sigma_s` and images `arr_0`.
      network: the Inception network, for features of the images.
      sizes: the length of each feature.
      wanted: names of the features.
      rows: names of the features whose rows are needed, which only a batch can give.
      size: height and width of the samples.

    Returns:
      The statistics of those features that the file has.

    Raises:
      JcmError: if the file is none of these, or its images have another size.
    """
    expected = {"arr_0": npz.Array(("uint8",), ("n", "h", "w", "c"), optional=True)}
    for end, name in _PUBLISHED.items():
        d = sizes[name]
        expected[f"mu{end}"] = npz.Array(npz.FLOATS, (d,), optional=True)
        expected[f"sigma{end}"] = npz.Array(npz.FLOATS, (d, d), optional=True)
    try:
        arrays = npz.read(
            *(expanded(path), expected),
            "name an .npz with mu and sigma of the Inception network",
        )
    except JcmError as error:
        raise JcmError(f"config.eval.reference: {error}") from error
    found = _published_moments(path, arrays)
    if "arr_0" in arrays:
        images = arrays["arr_0"]
        if images.shape[1:3] != (size, size):
            raise JcmError(
                f"config.eval.reference={path} has images of shape {images.shape[1:]},"
                f" but the samples are {size}x{size}: name a reference of their size"
            )
        # Moments that the file states are not computed from its images.
        missing = (wanted - set(found)) | rows
        title = f"{network.name} of {pathlib.Path(path).name}"
        found = _with_images(found, network, images, missing, rows, title)
    if not found:
        raise JcmError(
            f"config.eval.reference={path} has no statistics and no images: name an"
            " .npz with mu and sigma"
        )
    return found


def _published_moments(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray]
) -> dict[str, Statistics]:
    """Returns the moments that the file states, as float64 and without rows."""
    found = {}
    for suffix, name in _PUBLISHED.items():
        if f"mu{suffix}" not in arrays or f"sigma{suffix}" not in arrays:
            continue
        mean = np.asarray(arrays[f"mu{suffix}"], np.float64)
        cov = np.asarray(arrays[f"sigma{suffix}"], np.float64)
        moments = frechet.Moments(mean, cov, 0)
        fault = moments.fault()
        if fault:
            raise JcmError(
                f"config.eval.reference={path}: mu{suffix} and sigma{suffix} are"
                f" damaged ({fault}): name another file"
            )
        found[name] = Statistics(moments, None)
    return found


def _with_images(
    stated: dict[str, Statistics],
    network: FeatureNetwork,
    images: np.ndarray,
    wanted: set[str],
    rows: set[str],
    title: str,
) -> dict[str, Statistics]:
    """Adds the statistics of images to the moments that a file states."""
    computed = {}
    if wanted:
        computed = statistics.collect(
            network,
            lambda indices: images[indices],
            len(images),
            wanted=wanted,
            rows=rows,
            title=title,
        )
    for name, each in stated.items():
        rows_of = computed[name].rows if name in computed else None
        computed[name] = Statistics(each.moments, rows_of)
    return computed


def _write(path: pathlib.Path, found: Statistics) -> None:
    arrays = {name: np.asarray(each) for name, each in vars(found.moments).items()}
    if found.rows is not None:
        arrays["rows"] = found.rows
    npz.write(path, arrays)


def _read(
    path: pathlib.Path, size: int, count: int, rows: int | None
) -> Statistics | None:
    """Reads cached statistics; None if there are none that can be used.

    Args:
      path: of the file.
      size: the length of the features.
      count: the number of images.
      rows: the number of rows that are needed; None for none.
    """
    if not path.exists():
        return None
    expected = {
        "mean": npz.Array(("float64",), (size,)),
        "cov": npz.Array(("float64",), (size, size)),
        "count": npz.Array(npz.WHOLE, ()),
    }
    if rows is not None:
        expected["rows"] = npz.Array(("float32",), (rows, size))
    try:
        arrays = npz.read(path, expected, "it is computed again")
    except JcmError as error:
        logging.warning("%s", error)
        return None
    moments = frechet.Moments(arrays["mean"], arrays["cov"], int(arrays["count"]))
    found = Statistics(moments, arrays.get("rows"))
    fault = moments.fault()
    if moments.count != count:
        fault = f"they are of {moments.count} images instead of {count}"
    if found.rows is not None and not np.isfinite(found.rows).all():
        fault = "a row is not finite"
    if fault:
        logging.warning("%s is damaged (%s): it is computed again", path, fault)
        return None
    return found
