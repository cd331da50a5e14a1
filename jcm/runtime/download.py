"""Downloads files, so that each is either complete or absent."""

import errno
import http.client
import pathlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any

import tqdm
from absl import logging

from jcm.runtime import files, hashes, leftovers
from jcm.runtime.errors import JcmError, one_line

# The largest file that is downloaded: no published file is half as large.
_MOST_BYTES = 8 * 2**30
_BLOCK = 2**18
# A server must send this many bytes in each period, and something within a minute.
_PERIOD_S = 60.0
_LEAST_BYTES = 64 * 2**10
_TIMEOUT_S = 60.0


def fetch(url: str, target: pathlib.Path, expected: str, remedy: str) -> pathlib.Path:
    """Downloads a file unless it exists, and returns its path.

    The file appears under its name when all of it has arrived and has the published
    digest. A file that exists is compared with the published digest when a process
    first asks for it. Where no digest was published, the SHA-256 of a download is
    written beside it, for `first_read`.

    Args:
      url: the address of the file.
      target: the path to write; missing folders are created.
      expected: the published digest, as `check_digest` takes it.
      remedy: what to do without a network, for the error message.

    Raises:
      JcmError: if the file cannot be downloaded or written, or has another digest.
    """
    if target.exists():
        subject = f"{target} is there, but"
        check_digest(target, expected, subject, f"delete it, or {remedy}")
        return target
    leftovers.remove(target.parent)  # a killed download may have left much
    with files.replacing(target) as partial, partial.open("wb") as file:
        try:
            _download(url, file, remedy)
        except (OSError, http.client.HTTPException, ValueError) as error:
            full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            if getattr(error, "errno", None) in full:
                raise  # `replacing` explains it
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            reason = one_line(error, 200)
            raise JcmError(f"cannot download {url} ({reason}): {remedy}") from error
        file.close()
        check_digest(partial, expected, f"{url} arrived", remedy)
        if not expected:
            found = hashes.sha256(partial)
            hashes.write(hashes.beside(target), {target.name: found})
            logging.info(
                "no hash of %s was published to compare it with; its SHA-256, %s, is"
                " kept beside it and compared from now on",
                *(url, found),
            )
    return target


def _download(url: str, file: IO[bytes], remedy: str) -> None:
    """Writes what a server sends to a file."""
    opener = urllib.request.build_opener(_Redirects)
    with opener.open(url, timeout=_TIMEOUT_S) as response:
        length = response.headers.get("Content-Length")
        announced = int(length) if length and length.isdecimal() else None
        if announced and announced > _MOST_BYTES:
            raise ValueError(f"{announced:,} bytes are announced")
        name = url.rpartition("/")[2]
        with tqdm.tqdm(desc=name, total=announced, unit="B", unit_scale=True) as bar:
            for block in _blocks(response):
                file.write(block)
                bar.update(len(block))
    if announced is not None and announced != file.tell():
        raise JcmError(
            f"the download of {url} ended after {file.tell()} of {announced} bytes: try"
            f" again, or {remedy}"
        )


def _blocks(response: Any) -> Iterator[bytes]:
    """Yields what a server sends, unless it is too slow or does not end."""
    count, started, before = 0, time.monotonic(), 0
    while block := response.read1(_BLOCK):
        count += len(block)
        if count > _MOST_BYTES:
            raise ValueError(f"it sends more than {_MOST_BYTES:,} bytes")
        if time.monotonic() - started > _PERIOD_S:
            if count - before < _LEAST_BYTES:
                raise ValueError(
                    f"it sends fewer than {_LEAST_BYTES:,} bytes in {_PERIOD_S:.0f} s"
                )
            started, before = time.monotonic(), count
        yield block


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted connection to another one."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Returns the next request."""
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise ValueError(f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_digest(path: pathlib.Path, expected: str, subject: str, remedy: str) -> None:
    """Checks that a file has the published digest; a second time, only if it changed.

    Args:
      path: the path of the file.
      expected: the algorithm, a colon, and all or the first digits of the digest, such
        as "sha256:397923af"; "" if none was published.
      subject: the beginning of the error message, such as "FILE exists, but".
      remedy: the end of the error message.

    Raises:
      JcmError: if the digest differs, or if the file cannot be read.
    """
    if not expected:
        return
    algorithm, _, digest = expected.partition(":")
    found = hashes.known(path, algorithm)
    if not found.startswith(digest):
        raise JcmError(f"{subject} with {algorithm} {found}, not {digest}: {remedy}")
