"""Statistics of the real images: of a data set, or from a published file."""

import os
import pathlib
import zipfile
from collections.abc import Collection

import numpy as np
from absl import logging

from jcm.data import Dataset
from jcm.metrics import frechet, statistics
from jcm.metrics.networks import FeatureNetwork
from jcm.metrics.statistics import Statistics
from jcm.runtime import distributed, download, files
from jcm.runtime.errors import JcmError

# Scores that look at images one by one do so at no more of the real ones.
_MOST_ROWS = 50_000


def of_dataset(
    network: FeatureNetwork, dataset: Dataset, wanted: set[str], rows: set[str]
) -> dict[str, Statistics]:
    """Statistics of a whole data set, computed once and kept below `$JCM_CACHE`.

    Args:
      network: what looks at the images.
      dataset: its fingerprint is part of the files' names, one for each feature.
      wanted: names of the features.
      rows: those of them that are kept one by one, of 50,000 images at most.
    """
    prefix = f"{dataset.fingerprint}-{network.version}"

    def path(name: str, with_rows: bool) -> pathlib.Path:
        file = f"{prefix}-{name}{'-rows' if with_rows else ''}.npz"
        return download.cache("reference") / file

    known: dict[str, Statistics] = {}
    for name in sorted(wanted):
        # One with rows serves either way.
        for candidate in (path(name, name in rows), path(name, True)):
            # Together or not at all: machines have caches of their own.
            if distributed.gather(np.bool_(candidate.exists())).all():
                known[name] = _read(candidate, name in rows)
                break
    wanted, rows = wanted - set(known), rows - set(known)
    if not wanted:
        return known
    few = len(dataset) <= _MOST_ROWS
    found = statistics.collect(
        network,
        lambda indices: dataset.take(indices)["image"],
        len(dataset),
        wanted=wanted,
        rows=rows if few else (),
        title=f"{network.name} of {dataset.name}",
    )
    if rows and not few:
        chosen = np.random.default_rng(0).permutation(len(dataset))[:_MOST_ROWS]
        seen = statistics.collect(
            network,
            lambda indices: dataset.take(chosen[indices])["image"],
            len(chosen),
            wanted=rows,
            rows=rows,
            title=f"{network.name} of {dataset.name}, one by one",
        )
        found |= {
            name: Statistics(found[name].moments, seen[name].rows) for name in rows
        }
    for name, each in found.items():
        _write(path(name, name in rows), each)
    logging.info("kept statistics of %s below %s", dataset.name, path("", False).parent)
    return known | found


def published(
    path: str | os.PathLike,
    network: FeatureNetwork,
    wanted: set[str],
    rows: set[str],
    size: int,
) -> dict[str, Statistics]:
    """Statistics from a published file of the Inception network.

    Args:
      path: an .npz with `mu` and `sigma` (EDM, clean-fid), and where there are with
        `mu_s`, `sigma_s` and images `arr_0` (the reference batches of
        guided-diffusion).
      network: the Inception network.
      wanted: names of the features.
      rows: those that some score needs one by one; only a batch has them.
      size: height and width of the samples.

    Raises:
      JcmError: the file is none of these, or its images are of another size.
    """
    try:
        arrays = _arrays(pathlib.Path(path).expanduser())
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise JcmError(
            f"config.eval.reference={path} cannot be read ({error}): name an .npz"
        ) from error
    found = {}
    for name, suffix in (("pool", ""), ("spatial", "_s")):
        if f"mu{suffix}" in arrays and f"sigma{suffix}" in arrays:
            mean = np.asarray(arrays[f"mu{suffix}"], np.float64)
            cov = np.asarray(arrays[f"sigma{suffix}"], np.float64)
            if mean.ndim != 1 or cov.shape != 2 * mean.shape:
                raise JcmError(
                    f"config.eval.reference={path}: mu of shape {mean.shape} and sigma"
                    f" of shape {cov.shape} do not go together"
                )
            if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
                raise JcmError(f"config.eval.reference={path} has numbers not finite")
            found[name] = Statistics(frechet.Moments(mean, cov, 0), None)
    if "arr_0" in arrays:
        images = arrays["arr_0"]
        if images.shape[1:3] != (size, size):
            raise JcmError(
                f"config.eval.reference={path} has images of shape {images.shape[1:]},"
                f" the samples are {size}x{size}: name a reference of their size"
            )
        # What the file tells is not computed again.
        missing = (wanted - set(found)) | rows
        seen = {}
        if missing:
            seen = statistics.collect(
                network,
                lambda indices: images[indices],
                len(images),
                wanted=missing,
                rows=rows,
                title=f"{network.name} of {pathlib.Path(path).name}",
            )
        found = seen | {
            name: Statistics(each.moments, seen[name].rows if name in seen else None)
            for name, each in found.items()
        }
    if not found:
        raise JcmError(
            f"config.eval.reference={path} has {', '.join(arrays) or 'nothing'}: name"
            " an .npz with mu and sigma"
        )
    return found


def _write(path: pathlib.Path, found: Statistics) -> None:
    arrays = dict(vars(found.moments))
    if found.rows is not None:
        arrays["rows"] = found.rows
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _read(path: pathlib.Path, with_rows: bool) -> Statistics:
    try:
        arrays = _arrays(path, () if with_rows else ("rows",))
        moments = frechet.Moments(
            arrays["mean"], arrays["cov"], count=int(arrays["count"])
        )
        return Statistics(moments, arrays.get("rows"))
    except (
        *(OSError, ValueError, KeyError, TypeError, EOFError),
        zipfile.BadZipFile,
    ) as error:
        raise JcmError(f"{path} is damaged ({error}): delete it") from error


def _arrays(
    path: str | os.PathLike, but: Collection[str] = ()
) -> dict[str, np.ndarray]:
    # Opened here, since numpy leaves a file open that it cannot read.
    with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name not in but}
