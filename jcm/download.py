"""A download that is whole or not there."""

import hashlib
import http.client
import os
import pathlib
import tempfile
import urllib.request

import tqdm

from jcm.errors import JcmError


def fetch(url: str, md5: str, folder: pathlib.Path, remedy: str) -> pathlib.Path:
    """Downloads `url` into `folder`, once; returns the path of the file.

    The name appears only when the whole file has arrived and has the published hash,
    so that a file found under it needs no second look.

    Raises:
      JcmError: there is no network, or the content is not what was published.
    """
    target = folder / url.rsplit("/", 1)[-1]
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.md5(usedforsecurity=False)
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=target.name + ".")
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            urllib.request.urlopen(url, timeout=60) as response,
            tqdm.tqdm(
                desc=target.name,
                total=int(response.headers.get("Content-Length", 0)) or None,
                unit="B",
                unit_scale=True,
            ) as progress,
        ):
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
                progress.update(len(block))
        if digest.hexdigest() != md5:
            raise JcmError(f"{url} arrived with md5 {digest.hexdigest()}: {remedy}")
        os.replace(partial, target)
    except (OSError, http.client.HTTPException) as error:
        raise JcmError(f"cannot download {url} ({error}): {remedy}") from error
    finally:
        pathlib.Path(partial).unlink(missing_ok=True)
    return target
