"""A download that is whole or not there."""

import errno
import functools
import hashlib
import http.client
import os
import pathlib
import tempfile
import urllib.request

import tqdm

from jcm.runtime.errors import JcmError


def cache(kind: str) -> pathlib.Path:
    """The folder for files of one kind: below `$JCM_CACHE`, or ~/.cache/jcm."""
    root = os.environ.get("JCM_CACHE") or "~/.cache/jcm"
    return pathlib.Path(root).expanduser() / kind


def fetch(url: str, target: pathlib.Path, expected: str, remedy: str) -> pathlib.Path:
    """Downloads `url` to `target`, once; returns `target`.

    The name appears only when the whole file has arrived and has the published hash,
    so that a file found under it needs no second look.

    Args:
      url: where it is published.
      target: where it shall be; folders are made.
      expected: as `check_digest` takes it.
      remedy: what to do without a network, for the error.

    Raises:
      JcmError: there is no network, or the content is not what was published.
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
                f"{url} broke off after {partial.stat().st_size} of {wanted} bytes:"
                f" try again, or {remedy}"
            )
        check_digest(partial, expected, f"{url} arrived", remedy)
        os.replace(partial, target)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise JcmError(
                f"cannot write {target} ({error}): make room there"
            ) from error
        raise JcmError(f"cannot download {url} ({error}): {remedy}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def check_digest(path: pathlib.Path, expected: str, subject: str, remedy: str) -> None:
    """Compares a file with what was published.

    Args:
      path: of the file.
      expected: the algorithm, a colon, and the first digits or all of the digest:
        "sha256:397923af"; "" where nothing was published.
      subject: what the error is about.
      remedy: what to do about it.

    Raises:
      JcmError: it is another file.
    """
    if not expected:
        return
    algorithm, _, digest = expected.partition(":")
    with path.open("rb") as file:
        new = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
        found = hashlib.file_digest(file, new).hexdigest()
    if not found.startswith(digest):
        raise JcmError(f"{subject} with {algorithm} {found}, not {digest}: {remedy}")
