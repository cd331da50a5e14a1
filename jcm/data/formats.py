"""Which picture files can be read: the formats of Pillow, and HEIF with pillow-heif."""

import functools
import importlib
import importlib.util
import pathlib

from PIL import Image

from jcm.runtime.errors import JcmError

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_REMEDY = "to read HEIC files, run pip install pillow-heif"

# Pillow recognises these formats, but cannot decode them, or only with another program.
# Ghostscript would run the code in a file of PostScript.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# The brands at the start of files that libheif decodes.
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
)


@functools.cache
def decoded() -> tuple[str, ...]:
    """Returns the names that Pillow has for the formats that can be read here."""
    Image.init()
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    found = [name for name in Image.ID if name not in _NOT_DECODED]
    return tuple(sorted(found, key=lambda name: name not in marked()))


def marked() -> frozenset[str]:
    """Returns the formats whose files begin with a signature."""
    return frozenset(name for name, (_, accept) in Image.OPEN.items() if accept)


@functools.cache
def suffixes() -> frozenset[str]:
    """Returns the suffixes of the files that can be read here, in lower case."""
    formats = decoded()
    found = Image.registered_extensions().items()
    return frozenset(suffix.lower() for suffix, name in found if name in formats)


def is_picture(path: pathlib.Path) -> bool:
    """Returns whether a file is a picture, by its suffix.

    The content of a file without a suffix is examined.
    """
    if path.suffix:
        return path.suffix.lower() in suffixes()
    # The other formats would accept files that are not pictures.
    formats = [name for name in decoded() if name in marked()]
    try:
        with Image.open(path, formats=formats):
            return True
    # Pillow raises many types of exceptions for files that are not pictures.
    except Exception:
        return False


def check_heif(data: bytes) -> None:
    """Raises an error if a file can be read with pillow-heif only, which is missing.

    Args:
      data: the content of the file.
    """
    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    if heif and "HEIF" not in decoded():
        raise JcmError(HEIF_REMEDY)
