"""The versions of this code, of packages and of devices, which decide its results."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any, Literal

import jax
import msgspec

from jcm.runtime import json_files
from jcm.runtime.errors import JcmError

# The form of workdirs and of exported folders. Version 0.1 did not record it.
FORMAT = 4


class OtherVersion(JcmError):
    """A workdir or a folder has the form of another version of jcm."""

    def __init__(self, what: str, found: object):
        """Creates the error.

        Args:
          what: the beginning of its sentence, such as "run.json was written by".
          found: the form that the file states; None if it states none.
        """
        newer = isinstance(found, int) and found > FORMAT
        super().__init__(
            f"{what} a newer version of jcm: upgrade jcm to open it"
            if newer
            else f"{what} an older version of jcm, whose files this version does not"
            " open: use that version, or train again in another workdir"
        )


class _Format(msgspec.Struct, frozen=True):
    """The form that a file states; some older files have a text there, or nothing."""

    format: int | Literal["jcm"] | None = None


def check_format(path: pathlib.Path, what: str, remedy: str) -> None:
    """Checks that a JSON file has the form of this version.

    Args:
      path: of the file.
      what: the beginning of the sentence of `OtherVersion`.
      remedy: the end of the message of another error.

    Raises:
      JcmError: if it has another form, or cannot be read.
      FileNotFoundError: if there is no such file.
    """
    found = json_files.read(path, _Format, remedy).format
    if found != FORMAT:
        raise OtherVersion(what, found)


# They change numbers, or how processes communicate.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_ROOT = pathlib.Path(__file__).parents[2]
_GIT_SECONDS = 10


def versions() -> dict[str, str]:
    """Returns the versions of jcm, Python and packages, and a hash of jcm's source."""
    folder = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return {
        "jcm": importlib.metadata.version("jcm"),
        "code": digest.hexdigest()[:12],
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def environment() -> dict[str, Any]:
    """Returns what the last bits of a run depend on, besides its settings and data.

    These are the `versions`, the commit of jcm, and the devices of all processes.
    """
    return versions() | {
        "commit": commit(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def commit() -> str:
    """Returns the commit of the source of jcm, or "" if it is unknown.

    It ends in "-dirty" if files that git tracks have been changed since.
    """
    if (_ROOT / ".git").exists():  # not another repository around an installed package
        describe = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
        describe += ["--abbrev=12", "--exclude=*"]
        try:
            return subprocess.run(
                describe,
                capture_output=True,
                check=True,
                text=True,
                timeout=_GIT_SECONDS,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""
    origin = importlib.metadata.distribution("jcm").read_text("direct_url.json")
    installed = json.loads(origin or "{}").get("vcs_info", {})
    return str(installed.get("commit_id", ""))[:12]


def in_words(environment: Mapping[str, Any]) -> str:
    """Returns the packages and devices of an `environment` in one line.

    Another version of jcm may have recorded other names, of which each is left out or
    unknown.
    """
    known = {"devices": "unknown", "device": "devices"} | dict(environment)
    source = known.get("commit") or f"code {known.get('code') or 'unknown'}"
    names = (name for name in ("python", *_PACKAGES) if name in known)
    packages = ", ".join(f"{name} {known[name]}" for name in names)
    return (
        f"jcm {known.get('jcm', 'unknown')} ({source}), {packages}, on"
        f" {known['devices']} x {known['device']}"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns in words how two environments differ, such as "jax 0.10.1, now 0.10.2".

    A commit counts only if the code differs.
    """
    skipped = {"code", "commit"}
    if before.get("code") != now["code"]:
        commits = {before.get("commit", ""), now["commit"]}
        skipped.remove("commit" if len(commits - {""}) == 2 else "code")
    return [
        f"{name} {before.get(name, 'unknown')}, now {now[name]}"
        for name in now
        if name not in skipped and before.get(name) != now[name]
    ]
