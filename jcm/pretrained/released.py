"""The checkpoints that OpenAI published with the paper, by the names to load them by.

Song et al. 2023; addresses and two-step noise levels from the READMEs and scripts of
openai/consistency_models and openai/consistency_models_cifar10. No hashes were
published.
"""

import dataclasses
import os
import pathlib

from jcm import download
from jcm.errors import JcmError

_BASE = "https://openaipublic.blob.core.windows.net/consistency/"


@dataclasses.dataclass(frozen=True)
class Released:
    """A published checkpoint.

    Attributes:
      file: its address below the publisher's folder.
      kind: "edm" or "consistency".
      sigmas: noise levels that sample well in two steps; empty for "edm", and where
        none were published.
    """

    file: str
    kind: str = "consistency"
    sigmas: tuple[float, ...] = ()


def _cifar10(folder: str, number: int) -> Released:
    file = f"jcm_checkpoints/{folder}/checkpoints/checkpoint_{number}"
    return Released(file, sigmas=(80.0, 0.5853) if folder == "cd-lpips" else ())


RELEASED = {
    "openai/edm-cifar10": Released("jcm_checkpoints/edm_cifar10_ema", "edm"),
    "openai/cd-cifar10-l1": _cifar10("cd-l1", 80),
    "openai/cd-cifar10-l2": _cifar10("cd-l2", 80),
    "openai/cd-cifar10-lpips": _cifar10("cd-lpips", 80),
    "openai/ct-cifar10-lpips": _cifar10("ct-lpips", 74),
    "openai/ccd-cifar10-l2": _cifar10("cifar10-continuous-cd-l2", 40),
    "openai/ccd-cifar10-l2-stopgrad": _cifar10("cifar10-continuous-cd-l2-stopgrad", 40),
    "openai/ccd-cifar10-lpips-stopgrad": _cifar10(
        "cifar10-continuous-cd-lpips-stopgrad", 40
    ),
    "openai/cct-cifar10-l2": _cifar10("continuous-ct-l2", 80),
    "openai/cct-cifar10-lpips": _cifar10("continuous-ct-lpips", 40),
    "openai/edm-imagenet64": Released("edm_imagenet64_ema.pt", "edm"),
    "openai/cd-imagenet64-l2": Released("cd_imagenet64_l2.pt", sigmas=(80.0, 1.3824)),
    "openai/cd-imagenet64-lpips": Released(
        "cd_imagenet64_lpips.pt", sigmas=(80.0, 1.3824)
    ),
    "openai/ct-imagenet64": Released("ct_imagenet64.pt", sigmas=(80.0, 1.9128)),
    "openai/edm-bedroom256": Released("edm_bedroom256_ema.pt", "edm"),
    "openai/cd-bedroom256-l2": Released("cd_bedroom256_l2.pt", sigmas=(80.0, 3.5197)),
    "openai/cd-bedroom256-lpips": Released(
        "cd_bedroom256_lpips.pt", sigmas=(80.0, 4.3656)
    ),
    "openai/ct-bedroom256": Released("ct_bedroom256.pt", sigmas=(80.0, 3.9912)),
    "openai/edm-cat256": Released("edm_cat256_ema.pt", "edm"),
    "openai/cd-cat256-l2": Released("cd_cat256_l2.pt"),
    "openai/cd-cat256-lpips": Released("cd_cat256_lpips.pt"),
    "openai/ct-cat256": Released("ct_cat256.pt", sigmas=(80.0, 5.2485)),
}


def is_name(source: str | os.PathLike) -> bool:
    """Whether something is meant as a name of a published checkpoint."""
    return str(source).startswith("openai/")


def fetch(name: str) -> pathlib.Path:
    """The file of a published checkpoint, downloaded at first use.

    It is kept below `$JCM_CACHE/pretrained`, or ~/.cache/jcm/pretrained.

    Raises:
      JcmError: for an unknown name, or where it cannot be fetched; says what to put
        where.
    """
    if name not in RELEASED:
        raise JcmError(f"{name!r} is no published model: use {', '.join(RELEASED)}")
    url = _BASE + RELEASED[name].file
    target = download.cache("pretrained") / name / pathlib.Path(url).name
    return download.fetch(
        url, target, "", f"download {url} elsewhere and put it at {target}"
    )
