"""Every config field with its default, and the checks that a config must pass."""

import pathlib
import runpy
import types
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jcm.runtime.errors import JcmError, one_line

# A wheel contains the configs in the package; a clone has them beside it.
_PACKAGE = pathlib.Path(__file__).parent
_SHIPPED = next(
    (p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir()),
    _PACKAGE,
)


def base() -> ConfigDict:
    """Returns every field that exists, with the settings of CD on CIFAR-10.

    The comment on the line of a field, or on the lines above it, describes the field.
    `check` has the bounds of the fields. `_FREE` in `run/workdir.py` names those that
    may change when a run resumes.
    """
    config = ConfigDict()
    config.method = "cd"  # training method: edm, cd or ct
    config.seed = 0  # seed of the initial weights and of training
    # Teacher of cd: anything that jcm.load opens (a workdir, a file, a published name),
    # or a config file, whose model is trained first in WORKDIR/teacher.
    config.teacher = ""
    config.init = _init()
    # Folder with the weights of published metric and score networks; "" uses
    # $JCM_CACHE/weights or ~/.cache/jcm/weights and downloads missing files.
    config.weights = ""
    config.data = _data()
    config.noise = _noise()
    config.model = _model()
    config.loss = _loss()
    config.optim = _optim()
    config.train = _train()
    config.mesh = _mesh()
    config.profile = _profile()
    config.sample = _sample()
    config.eval = _eval()
    config.search = _search()
    return config.lock()


def _init() -> ConfigDict:
    """Returns `config.init`: what a new run starts from."""
    init = ConfigDict()
    # Model to start from: anything that jcm.load opens; "" starts from the teacher, or
    # from random weights without one.
    init.model = ""
    # Also take the step, averages and optimiser state of init.model, to continue its
    # training.
    init.state = False
    return init


def _data() -> ConfigDict:
    """Returns `config.data`: the data set and how it is read."""
    data = ConfigDict()
    data.name = "cifar10"  # data set: cifar10, digits or image_folder
    data.path = ""  # folder of images for image_folder, or the archive of cifar10
    data.split = "train"  # part to train on and compare with, such as train[:90%]
    data.dir = ""  # prepared data sets; "" uses $JCM_CACHE/data or ~/.cache/jcm/data
    data.image_size = 32  # height and width in pixels
    data.channels = 3  # 3 for colour, 1 for grey
    data.flip = True  # whether to flip random images horizontally
    data.skip_broken = False  # whether to skip unreadable images instead of stopping
    data.cache_mib = 1024  # largest decoded data set that is kept in memory, in MiB
    data.workers = 1  # threads that prepare batches ahead of time; 0 for none
    return data


def _noise() -> ConfigDict:
    """Returns `config.noise`: the noise levels of EDM (Karras et al. 2022)."""
    noise = ConfigDict()
    noise.sigma_data = 0.5  # standard deviation of the data
    noise.sigma_min = 0.002  # smallest noise level
    noise.sigma_max = 80.0  # largest noise level
    noise.rho = 7.0  # exponent that spaces the noise levels of a grid
    return noise


def _model() -> ConfigDict:
    """Returns `config.model`: the network."""
    model = ConfigDict()
    model.name = "ncsnpp"  # architecture: ncsnpp or adm
    model.class_conditional = False  # whether the network takes class labels
    model.nf = 128  # channels at full resolution, before ch_mult
    model.ch_mult = (2, 2, 2)  # multiplier of nf at each level, full resolution first
    model.num_res_blocks = 4  # residual blocks of each level
    model.attn_resolutions = (16,)  # image sizes with self-attention
    model.dropout = 0.0  # dropout rate inside the residual blocks
    model.dtype = "float32"  # type of the computation: float32 or bfloat16
    # Image sizes whose layers are computed again in the backward pass, which saves
    # memory and takes time.
    model.remat = ()
    model.ncsnpp = _ncsnpp()
    model.adm = _adm()
    return model


def _ncsnpp() -> ConfigDict:
    """Returns `config.model.ncsnpp`: the fields that only NCSN++ has."""
    ncsnpp = ConfigDict()
    ncsnpp.embedding_type = "fourier"  # embedding of the noise: fourier or positional
    ncsnpp.fourier_scale = 16.0  # standard deviation of the Fourier frequencies
    # Whether smaller copies of the input join each level: residual or none.
    ncsnpp.progressive_input = "residual"
    ncsnpp.fir_kernel = (1.0, 3.0, 3.0, 1.0)  # taps of the resampling filter
    return ncsnpp


def _adm() -> ConfigDict:
    """Returns `config.model.adm`: the fields that only ADM has."""
    adm = ConfigDict()
    adm.num_heads = 0  # attention heads; 0 computes them from head_channels
    adm.head_channels = 64  # channels of each attention head; 0 with num_heads
    adm.time_scale = 1000.0  # factor of the noise input: OpenAI 1000, NVlabs 1
    # Whether the embedding scales and shifts the normalisation in residual blocks.
    adm.scale_shift_norm = True
    adm.resblock_updown = True  # whether residual blocks change the resolution
    return adm


def _loss() -> ConfigDict:
    """Returns `config.loss`: the loss and its curriculum."""
    loss = ConfigDict()
    # Distance of images: l1, l2, linf, pseudo_huber, lpips, lpips_alex, lpips_squeeze
    # or efficientnet_lite0.
    loss.metric = "lpips"
    # Size in pixels to which perceptual metrics enlarge images; 0 keeps their size.
    loss.metric_size = 224
    loss.metric_dtype = "float32"  # type of a perceptual metric: float32 or bfloat16
    loss.huber_c = 0.03  # c of pseudo_huber
    loss.weighting = "uniform"  # uniform, snr, snrp1 or truncated_snr
    loss.solver = "heun"  # ODE solver of the teacher: heun or euler
    loss.stop_gradient = True  # whether the target is a constant for the gradient
    # Curriculum: fixed (uses num_scales and target_ema) or adaptive (uses start_scales,
    # end_scales and start_ema).
    loss.scales = "fixed"
    loss.num_scales = 18  # fixed: number of noise levels
    loss.target_ema = 0.0  # fixed: EMA rate of the target; 0 uses the student itself
    loss.start_scales = 2  # adaptive: number of noise levels at the start
    loss.end_scales = 150  # adaptive: number of noise levels at the end
    loss.start_ema = 0.9  # adaptive: EMA rate of the target at the start
    loss.p_mean = -1.2  # edm: mean of ln(sigma)
    loss.p_std = 1.2  # edm: standard deviation of ln(sigma)
    return loss


def _optim() -> ConfigDict:
    """Returns `config.optim`: the optimiser."""
    optim = ConfigDict()
    optim.name = "radam"  # optimiser: radam or adam
    optim.learning_rate = 4e-4  # learning rate after the warm-up
    optim.b1 = 0.9  # decay rate of the first moment
    optim.b2 = 0.999  # decay rate of the second moment
    optim.eps = 1e-8  # term added to the denominator
    optim.warmup_kimg = 0.0  # length of the linear warm-up, in thousands of images
    optim.grad_clip = 0.0  # largest global norm of the gradient; 0 does not clip
    return optim


def _train() -> ConfigDict:
    """Returns `config.train`: the training loop."""
    train = ConfigDict()
    train.batch_size = 512  # images per step, over all devices and processes
    train.num_steps = 800_000  # steps of the whole run
    train.accumulate = 1  # micro-batches per step
    # Consecutive steps to skip because their loss or gradient is not finite, before the
    # run stops; 0 stops at the first one.
    train.skip_nonfinite = 0
    train.ema_rates = (0.9999,)  # rates of the weight averages; samples use the first
    train.log_every = 100  # steps between two log lines
    train.sample_every = 10_000  # steps between two sample grids; 0 for the end only
    train.checkpoint_every = 10_000  # steps between two checkpoints; 0 for the end only
    train.keep_checkpoints = 2  # newest checkpoints to keep
    return train


def _mesh() -> ConfigDict:
    """Returns `config.mesh`: how parameters are split over devices."""
    mesh = ConfigDict()
    mesh.fsdp = 1  # devices that share one copy of the parameters
    # Size in MiB below which tensors are replicated. With 8 devices, each holds 12.7 %
    # of ImageNet-64's network with 0.5, 13.2 % with 1 and 27 % with 4.
    mesh.fsdp_min_mib = 0.5
    # Exceptions, of which the first match counts: "REGULAR-EXPRESSION=AXIS" splits the
    # tensors with matching names along that axis, "REGULAR-EXPRESSION=none" replicates
    # them.
    mesh.rules = ()
    return mesh


def _profile() -> ConfigDict:
    """Returns `config.profile`: the trace of a few training steps."""
    profile = ConfigDict()
    profile.steps = ()  # (FIRST, LAST) step to trace for TensorBoard or Perfetto
    return profile


def _sample() -> ConfigDict:
    """Returns `config.sample`: which model to sample, and how."""
    sample = ConfigDict()
    # Consistency models: noise level of each step; one-step samples use the first.
    sample.sigmas = (80.0, 0.5853)
    sample.steps = 18  # diffusion models: points of the noise grid
    sample.solver = "heun"  # diffusion models: ODE solver, heun or euler
    sample.seed = 0  # seed of the noise
    sample.num_images = 64  # images to sample
    sample.batch_size = 64  # images per call of the sampler, over the local devices
    # Classes by number or name, repeated in turn; () uses every class in turn.
    sample.labels = ()
    sample.model = ""  # anything that jcm.load opens; "" uses the workdir's own model
    sample.step = 0  # step of the checkpoint to use; 0 uses the newest
    # Weights to use: a rate of train.ema_rates, params or target_params; "" uses the
    # first rate.
    sample.ema = ""
    return sample


def _eval() -> ConfigDict:
    """Returns `config.eval`: what the evaluation computes."""
    evaluation = ConfigDict()
    # Scores to compute: classifier, fid, sfid, kid, inception_score, precision_recall,
    # density_coverage, fd_dinov2 or fd_efficientnet_lite0.
    evaluation.scores = ("fd_efficientnet_lite0",)
    # File (.npz) with published statistics of real images for Inception; "" computes
    # them from the data set.
    evaluation.reference = ""
    evaluation.num_images = 1000  # samples per model, way of sampling and seed
    evaluation.seeds = (0,)  # seeds of the samples; each gives one value of a score
    evaluation.keep_samples = False  # whether to keep the samples as .npz files
    # Whether to evaluate every checkpoint as it appears, until training ends.
    evaluation.watch = False
    # Thousands of images between two evaluations during training; 0 for none.
    evaluation.every_kimg = 0.0
    return evaluation


def _search() -> ConfigDict:
    """Returns `config.search`: the search for noise levels below sigma_max."""
    search = ConfigDict()
    search.score = "fd_efficientnet_lite0"  # column of the score table to optimise
    search.steps = 2  # sampling steps, and so noise levels, to find
    search.points = 40  # noise levels of the grid to choose from
    search.seed = 1234  # seed of the samples that are compared; not one of eval.seeds
    return search


def smoke(config: ConfigDict) -> None:
    """Shrinks a config in place, so that it runs in seconds on a CPU."""
    config.model.nf = 8
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 0  # the decoder has one more at each level
    config.model.attn_resolutions = ()  # fits every image size
    config.model.remat = config.model.remat[:1]
    config.model.adm.head_channels = 8
    if config.loss.metric == "lpips":
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
    if is_file(config.teacher) and ":" not in config.teacher:
        config.teacher += ":smoke"


def from_dict(fields: dict[str, Any]) -> ConfigDict:
    """Returns the config that `to_dict` gave, also if it was stored as JSON.

    Raises:
      KeyError, TypeError: if a field is unknown or has another type.
    """
    config = base()
    with config.ignore_type():
        _update(config, fields)
    return config


def _update(config: ConfigDict, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name not in config:
            raise KeyError(f"unknown field {name}")
        if isinstance(config[name], ConfigDict):
            _update(config[name], value)
        else:  # JSON stores tuples as lists
            config[name] = tuple(value) if isinstance(value, list) else value


def flatten(tree: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields by dotted name, with values as JSON gives them back."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:  # JSON has no tuples
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(
    before: ConfigDict,
    now: ConfigDict,
    *,
    only: Sequence[str] = ("",),
    ignore: Sequence[str] = (),
) -> list[tuple[str, Any, Any]]:
    """Returns (field, value before, value now) of each field with another value.

    Args:
      before: a config.
      now: a config.
      only: the fields and sections to compare; by default all.
      ignore: fields and sections of these that may differ.
    """
    theirs, ours = flatten(before), flatten(now)

    def within(name: str, places: Sequence[str]) -> bool:
        return any(
            place in ("", name) or name.startswith(f"{place}.") for place in places
        )

    return [
        (name, theirs.get(name), ours.get(name))
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
        and within(name, only)
        and not within(name, ignore)
    ]


def is_file(spec: str) -> bool:
    """Returns whether a text names a config file, with or without a mode."""
    return spec.partition(":")[0].endswith(".py")


def find(path: str) -> pathlib.Path:
    """Returns the path of a config file, as given or among those of the package.

    Raises:
      JcmError: if there is no such file.
    """
    here = pathlib.Path(path)
    candidates = [here]
    if str(here.parent) in (".", "configs"):
        candidates.append(_SHIPPED / here.name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(f"configs/{p.name}" for p in _SHIPPED.glob("[a-z]*.py")))
    raise JcmError(f"there is no config {path}: name a file, or one of {known}")


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


# Smallest values of fields.
_LEAST = {
    "train.batch_size": 1,
    "train.num_steps": 1,
    "train.accumulate": 1,
    "train.skip_nonfinite": 0,
    "train.log_every": 1,
    "train.keep_checkpoints": 1,
    "loss.num_scales": 2,
    "loss.start_scales": 2,
    "sample.steps": 2,
    "sample.num_images": 1,
    "sample.batch_size": 1,
    "sample.step": 0,
    "search.steps": 2,
    "eval.num_images": 2,
    "data.workers": 0,
}

# Bounds of fields: the lower one is allowed, the upper one is not.
_BETWEEN = {
    "model.dropout": (0.0, 1.0),
    "loss.target_ema": (0.0, 1.0),
    "loss.start_ema": (1e-9, 1.0),
}


def check(config: ConfigDict) -> None:
    """Checks that the values of a config are in their bounds and fit together.

    Raises:
      JcmError: names the field and the values that it accepts.
    """
    for name, least in _LEAST.items():
        section, field = name.split(".")
        if config[section][field] < least:
            value = config[section][field]
            raise JcmError(f"config.{name}={value} must be at least {least}")
    for name, (least, bound) in _BETWEEN.items():
        section, field = name.split(".")
        value = config[section][field]
        if not least <= value < bound:
            raise JcmError(f"config.{name}={value} must be in [{least}, {bound})")
    for name in ("eval.seeds", "sample.sigmas"):
        section, field = name.split(".")
        if not config[section][field]:
            raise JcmError(f"config.{name}=() must have at least one value")
    if config.init.state and not config.init.model:
        raise JcmError(
            "config.init.state=True needs config.init.model: name the model to resume"
        )
    if config.eval.every_kimg > 0 and not config.eval.scores:
        raise JcmError(
            "config.eval.every_kimg needs config.eval.scores: name at least one, such"
            " as fd_efficientnet_lite0"
        )
    loss, noise = config.loss, config.noise
    if loss.end_scales < loss.start_scales:
        raise JcmError(
            f"config.loss.end_scales={loss.end_scales} must be at least"
            f" start_scales={loss.start_scales}"
        )
    for field in ("rho", "sigma_data"):
        if not noise[field] > 0:
            raise JcmError(f"config.noise.{field}={noise[field]} must be above 0")
    if not 0 < noise.sigma_min < noise.sigma_max:
        raise JcmError(
            f"config.noise: sigma_min={noise.sigma_min} must be above 0 and below"
            f" sigma_max={noise.sigma_max}"
        )
    for rate in config.train.ema_rates:
        if not 0 <= rate < 1:
            raise JcmError(f"config.train.ema_rates: {rate} must be in [0, 1)")


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
