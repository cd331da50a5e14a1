"""Downloads files, so that each is either complete or absent."""

import errno
import functools
import hashlib
import http.client
import os
import pathlib
import tempfile
import urllib.request

import tqdm

from jcm.runtime.errors import JcmError, one_line
from jcm.runtime.paths import expanded


def cache(kind: str) -> pathlib.Path:
    """Returns the cache folder of one kind of file, in $JCM_CACHE or ~/.cache/jcm."""
    root = os.environ.get("JCM_CACHE") or "~/.cache/jcm"
    return expanded(root) / kind


def fetch(url: str, target: pathlib.Path, expected: str, remedy: str) -> pathlib.Path:
    """Downloads a file unless it exists, and returns its path.

    The file appears under its name when all of it has arrived and has the published
    digest. A file that exists is therefore not checked again.

    Args:
      url: the address of the file.
      target: the path to write; missing folders are created.
      expected: the published digest, as `check_digest` takes it.
      remedy: what to do without a network, for the error message.

    Raises:
      JcmError: if the file cannot be downloaded or written, or has another digest.
    """
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            dir=target.parent, prefix=f"{target.name}.", suffix=".part"
        )
    except OSError as error:
        raise JcmError(f"cannot write {target} ({error.strerror}): {remedy}") from error
    partial = pathlib.Path(name)
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
                progress.update(len(block))
        wanted = response.headers.get("Content-Length")
        if wanted and int(wanted) != partial.stat().st_size:
            raise JcmError(
                f"the download of {url} ended after {partial.stat().st_size} of"
                f" {wanted} bytes: try again, or {remedy}"
            )
        check_digest(partial, expected, f"{url} arrived", remedy)
        os.replace(partial, target)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise JcmError(
                f"cannot write {target} ({one_line(error)}): free some space there"
            ) from error
        reason = one_line(error)
        raise JcmError(f"cannot download {url} ({reason}): {remedy}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def check_digest(path: pathlib.Path, expected: str, subject: str, remedy: str) -> None:
    """Checks that a file has the published digest.

    Args:
      path: the path of the file.
      expected: the algorithm, a colon, and all or the first digits of the digest, such
        as "sha256:397923af"; "" if none was published.
      subject: the beginning of the error message, such as "FILE exists, but".
      remedy: the end of the error message.

    Raises:
      JcmError: if the digest differs.
    """
    if not expected:
        return
    algorithm, _, digest = expected.partition(":")
    with path.open("rb") as file:
        new = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
        found = hashlib.file_digest(file, new).hexdigest()
    if not found.startswith(digest):
        raise JcmError(f"{subject} with {algorithm} {found}, not {digest}: {remedy}")
