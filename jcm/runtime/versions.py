"""The versions of this code and of the packages that decide its results."""

import hashlib
import importlib.metadata
import pathlib
import platform

from jcm.runtime.errors import JcmError

# The form of workdirs and of exported folders. Version 0.1 did not record it.
FORMAT = 2


class OtherVersion(JcmError):
    """A workdir or a folder has the form of another version of jcm."""

    def __init__(self, what: str, found: object):
        """Creates the error.

        Args:
          what: the beginning of its sentence, such as "run.json was written by".
          found: the form that the file states; None in version 0.1.
        """
        newer = isinstance(found, int) and found > FORMAT
        super().__init__(
            f"{what} a newer version of jcm: upgrade jcm to open it"
            if newer
            else f"{what} jcm 0.1, whose files this version does not open: use that"
            " version, or train again in another workdir"
        )


# They change numbers, or how processes communicate.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Returns a hash of the source of jcm, and the versions of Python and packages."""
    folder = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return {
        "the code of jcm": digest.hexdigest()[:12],
        "the version of python": platform.python_version(),
        **{
            f"the version of {name}": importlib.metadata.version(name)
            for name in _PACKAGES
        },
    }
