"""Config files: found by name, read, and shrunk by `:smoke`."""

import pathlib
import runpy
import types

from ml_collections import ConfigDict

from jcm.runtime import paths
from jcm.runtime.errors import JcmError, did_you_mean, one_line

# A wheel contains the configs in the package; a clone has them beside it.
_PACKAGE = pathlib.Path(__file__).parents[1]
_SHIPPED = next(
    (p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir()),
    _PACKAGE,
)


def is_file(spec: str) -> bool:
    """Returns whether a string names a config file, with or without a mode."""
    return spec.partition(":")[0].endswith(".py")


def name(spec: str) -> str:
    """Returns the name of a config, such as digits_cd, or digits_cd_smoke with :smoke.

    Args:
      spec: `path/to/file.py` or `path/to/file.py:smoke`.
    """
    path, _, mode = spec.partition(":")
    stem = pathlib.Path(path).stem
    return f"{stem}_{mode}" if mode else stem


def find(path: str) -> pathlib.Path:
    """Returns the path of a config file, as given or among those of the package.

    Raises:
      JcmError: if there is no such file.
    """
    here = paths.expanded(path)
    candidates = [here]
    if str(here.parent) in (".", "configs"):
        candidates.append(_SHIPPED / here.name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = [f"configs/{file.name}" for file in shipped()]
    guess = did_you_mean(path, known, ": `jcm config` lists the configs")
    raise JcmError(f"there is no config {path}{guess}")


def shipped() -> list[pathlib.Path]:
    """Returns the paths of the configs of the package, in alphabetical order."""
    return sorted(_SHIPPED.glob("[a-z]*.py"))


def load(spec: str) -> ConfigDict:
    """Returns the config of a file, `path/to/file.py` or `path/to/file.py:smoke`.

    Raises:
      JcmError: if the file is missing or does not define a config.
    """
    path, _, mode = spec.partition(":")
    file = find(path)
    try:
        module = runpy.run_path(str(file))
        if "get_config" not in module:
            raise JcmError(f"{file} is not a config: it must define get_config(mode)")
        return module["get_config"](mode)
    except JcmError:
        raise
    except Exception as error:  # a config is code and can fail in any way
        name = type(error).__name__
        raise JcmError(f"{file}: {name}: {one_line(error)}") from error


def presets() -> types.SimpleNamespace:
    """Returns the functions of configs/_presets.py: settings that configs share."""
    return types.SimpleNamespace(**runpy.run_path(str(_SHIPPED / "_presets.py")))


def finish(config: ConfigDict, mode: str) -> ConfigDict:
    """Applies the mode of a config and locks its fields; every config ends with this.

    Args:
      config: the complete config, which is changed in place.
      mode: "" for no change, or "smoke" to shrink it to seconds.

    Raises:
      JcmError: if the mode is unknown.
    """
    if mode not in ("", "smoke"):
        raise JcmError(f"config mode {mode!r} is unknown: use :smoke, or leave it out")
    if mode == "smoke":
        smoke(config)
    return config.lock()


def smoke(config: ConfigDict) -> None:
    """Shrinks a config in place, so that it runs in seconds on a CPU."""
    config.model.nf = 8
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 0  # the decoder has one more at each level
    config.model.attn_resolutions = ()  # fits every image size
    config.model.remat = config.model.remat[:1]
    config.model.adm.head_channels = 8
    if config.loss.get("metric") == "lpips":
        config.loss.metric = "l2"  # needs no weights
    config.train.batch_size = 16
    config.train.num_steps = 8
    config.train.log_every = 2
    config.train.sample_every = 4
    config.train.checkpoint_every = 4
    config.sample.num_images = 16
    config.sample.batch_size = 16
    config.eval.num_images = 400  # the packaged score network has fewer features
    config.eval.seeds = (0,)
    for name, teacher in config.teachers.items():
        if is_file(teacher) and ":" not in teacher:
            config.teachers[name] += ":smoke"
