"""The base that every config differs from, and what a config must satisfy."""

import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict

from jcm.runtime.errors import JcmError, one_line

# In a wheel the configs are inside the package, in a clone beside it.
_PACKAGE = pathlib.Path(__file__).parent
_SHIPPED = next(
    (p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir()),
    _PACKAGE,
)


def base() -> ConfigDict:
    """Every field that exists, with the settings of CD on CIFAR-10."""
    config = ConfigDict()
    config.method = "cd"  # a name in jcm.methods: edm, cd, ct
    config.seed = 0
    # For cd: a model that jcm.load opens (a workdir, a file, a published name), or a
    # config to train first in WORKDIR/teacher.
    config.teacher = ""
    # What a run begins with; "": the teacher, or random weights.
    config.init = ConfigDict()
    config.init.model = ""  # whatever jcm.load opens
    config.init.state = False  # also step, averages, optimiser: a training goes on

    # Folder with the files of published networks; "": $JCM_CACHE/weights or
    # ~/.cache/jcm/weights, into which they are fetched.
    config.weights = ""

    config.data = data = ConfigDict()
    data.name = "cifar10"  # cifar10, digits, image_folder
    data.path = ""  # folder of pictures, or the archive of cifar10
    data.split = "train"  # what is trained on and compared with, or train[:90%]
    data.dir = ""  # prepared data sets; "" is $JCM_CACHE/data or ~/.cache/jcm/data
    data.image_size = 32
    data.channels = 3
    data.flip = True  # random horizontal flips
    data.skip_broken = False  # pictures that cannot be read: skip, or stop
    data.cache_mib = 1024  # a decoded set of at most this size is kept in memory
    data.workers = 1  # threads that make batches ahead of time; 0: none

    config.noise = noise = ConfigDict()
    noise.sigma_data = 0.5
    noise.sigma_min = 0.002
    noise.sigma_max = 80.0
    noise.rho = 7.0

    config.model = model = ConfigDict()
    model.name = "ncsnpp"  # ncsnpp, adm
    model.class_conditional = False
    model.nf = 128
    model.ch_mult = (2, 2, 2)
    model.num_res_blocks = 4
    model.attn_resolutions = (16,)
    model.dropout = 0.0
    model.dtype = "float32"  # of the computation; bfloat16 on accelerators
    model.remat = ()  # sizes whose layers are computed twice, which saves memory
    # What one architecture alone has.
    model.ncsnpp = ConfigDict()
    model.ncsnpp.embedding_type = "fourier"  # of the time: fourier, positional
    model.ncsnpp.fourier_scale = 16.0
    model.ncsnpp.progressive_input = "residual"  # residual, none
    model.ncsnpp.fir_kernel = (1.0, 3.0, 3.0, 1.0)
    model.adm = ConfigDict()
    model.adm.num_heads = 0  # of attention; 0: as many as head_channels gives
    model.adm.head_channels = 64  # of each head; 0 with num_heads
    model.adm.time_scale = 1000.0  # of the time input; NVlabs: 1
    model.adm.scale_shift_norm = True
    model.adm.resblock_updown = True

    config.loss = loss = ConfigDict()
    # l1, l2, linf, pseudo_huber; lpips, lpips_alex, lpips_squeeze, efficientnet_lite0
    loss.metric = "lpips"
    loss.metric_size = 224  # perceptual ones enlarge images to this; 0: they do not
    loss.metric_dtype = "float32"  # of their network's computation; bfloat16
    loss.huber_c = 0.03
    loss.weighting = "uniform"  # uniform, snr, snrp1, truncated_snr
    loss.solver = "heun"  # of the teacher: heun, euler
    loss.stop_gradient = True
    loss.scales = "fixed"  # fixed: num_scales, target_ema; adaptive: the other three
    loss.num_scales = 18
    loss.target_ema = 0.0  # 0: the target is the student itself
    loss.start_scales = 2
    loss.end_scales = 150
    loss.start_ema = 0.9
    loss.p_mean = -1.2  # of ln sigma, for edm
    loss.p_std = 1.2

    config.optim = optim = ConfigDict()
    optim.name = "radam"  # radam, adam
    optim.learning_rate = 4e-4
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.warmup_kimg = 0.0  # thousand images
    optim.grad_clip = 0.0  # largest global norm; 0: none

    config.train = train = ConfigDict()
    train.batch_size = 512  # over all devices and processes
    train.num_steps = 800_000
    train.accumulate = 1  # micro-batches per step
    # Steps in a row whose gradient is not finite that are passed over; 0: none, stop.
    train.skip_nonfinite = 0
    train.ema_rates = (0.9999,)  # for sampling; the first is the default
    train.log_every = 100  # steps
    train.sample_every = 10_000  # a grid of samples; 0: at the end only
    train.checkpoint_every = 10_000  # 0: at the end only
    train.keep_checkpoints = 2

    config.mesh = mesh = ConfigDict()
    mesh.fsdp = 1  # devices that share one copy of the parameters
    # Smaller tensors are replicated. Of ImageNet-64's network each of 8 devices holds
    # 12.7 % with 0.5, 13.2 % with 1 and 27 % with 4.
    mesh.fsdp_min_mib = 0.5
    # Exceptions, the first that fits counts: "REGULAR-EXPRESSION=AXIS" splits tensors
    # whose name has it along that axis, "...=none" replicates them.
    mesh.rules = ()

    config.profile = ConfigDict()
    config.profile.steps = ()  # (FIRST, LAST) to trace for TensorBoard or Perfetto

    config.sample = sample = ConfigDict()
    # Consistency models: noise levels of n steps; one step is the first alone.
    sample.sigmas = (80.0, 0.5853)
    sample.steps = 18  # diffusion models: points of the grid
    sample.solver = "heun"  # diffusion models: heun, euler
    sample.seed = 0
    sample.num_images = 64
    sample.batch_size = 64  # over the local devices
    sample.labels = ()  # classes, cycled; (): every class in turn
    sample.model = ""  # whatever jcm.load opens; "": the workdir's own
    sample.step = 0  # which checkpoint; 0: the newest
    sample.ema = ""  # which weights: a rate of train.ema_rates, "params"; "": first

    config.eval = ConfigDict()
    config.eval.scores = ("fd_efficientnet_lite0",)  # names in jcm.metrics.scores
    # Published .npz with statistics of real images for Inception; "": the data set's.
    config.eval.reference = ""
    config.eval.num_images = 1000
    config.eval.seeds = (0,)
    config.eval.keep_samples = False  # as .npz, for other people's evaluators
    config.eval.watch = False  # every checkpoint as it appears, until training ends
    config.eval.every_kimg = 0.0  # while training; 0: never

    # What --mode=search looks for: sigmas of n steps, the first being sigma_max.
    config.search = search = ConfigDict()
    search.score = "fd_efficientnet_lite0"  # a column of the table of scores
    search.steps = 2
    search.points = 40  # levels to choose from
    search.seed = 1234  # not one of eval.seeds, which the result is reported with
    return config.lock()


def digits(config: ConfigDict) -> None:
    """What the three digits configs share: data, a small network, often looked at."""
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.flip = False  # a mirrored digit is no digit
    config.model.nf = 32
    config.model.ch_mult = (1, 1)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = ()
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.sample_every = 500
    config.train.checkpoint_every = 500
    config.eval.scores = ("classifier", "fd_efficientnet_lite0")


def folder(config: ConfigDict) -> None:
    """What the three folder configs share: a network for 32x32 on a small machine."""
    config.data.name = "image_folder"
    config.data.image_size = 32
    config.model.nf = 64
    config.model.num_res_blocks = 2
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.sample_every = 1000
    config.train.checkpoint_every = 1000


def _large(config: ConfigDict) -> None:
    """What the published networks of pictures from 64x64 on share; bf16."""
    config.data.name = "image_folder"
    config.model.name = "adm"
    config.model.attn_resolutions = (32, 16, 8)
    config.model.dtype = "bfloat16"
    config.loss.metric_dtype = "bfloat16"
    config.train.ema_rates = (0.999943,)


def imagenet64(config: ConfigDict) -> None:
    """What the three ImageNet-64 configs share: data and the published network."""
    _large(config)
    config.data.image_size = 64
    config.model.class_conditional = True
    config.model.remat = (64, 32, 16, 8)
    config.model.nf = 192
    config.model.ch_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = 3
    config.train.batch_size = 2048


def lsun256(config: ConfigDict) -> None:
    """What the three LSUN configs share: data and the published network."""
    _large(config)
    config.data.image_size = 256
    config.model.remat = (256, 128, 64, 32, 16, 8)
    config.model.nf = 256
    config.model.ch_mult = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.adm.scale_shift_norm = False
    config.train.batch_size = 256


def smoke(config: ConfigDict) -> None:
    """Shrinks any config to seconds on a CPU; in place."""
    config.model.nf = 8
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 0  # the way up has one more at each level
    config.model.attn_resolutions = ()  # fits every image size
    config.model.remat = config.model.remat[:1]
    config.model.adm.head_channels = 8
    if config.loss.metric == "lpips":
        config.loss.metric = "l2"  # no weights needed
    config.train.batch_size = 16
    config.train.num_steps = 8
    config.train.log_every = 2
    config.train.sample_every = 4
    config.train.checkpoint_every = 4
    config.sample.num_images = 16
    config.sample.batch_size = 16
    config.eval.num_images = 400  # more than the features of the packaged network
    config.eval.seeds = (0,)
    if is_file(config.teacher) and ":" not in config.teacher:
        config.teacher += ":smoke"


def from_dict(fields: dict[str, Any]) -> ConfigDict:
    """A config from what `to_dict` gave, also after a way through JSON.

    Raises:
      KeyError, TypeError: where a field is unknown or of another type.
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
        else:  # JSON has lists for tuples
            config[name] = tuple(value) if isinstance(value, list) else value


def is_file(spec: str) -> bool:
    """Whether a text names a config file, with or without a mode."""
    return spec.partition(":")[0].endswith(".py")


def find(path: str) -> pathlib.Path:
    """A config file: as given, or among those that come with the package.

    Raises:
      JcmError: where there is none.
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
    """The config of a file, `path/to/file.py` or `path/to/file.py:smoke`.

    Raises:
      JcmError: where the file is missing or does not give a config.
    """
    path, _, mode = spec.partition(":")
    file = find(path)
    try:
        module = runpy.run_path(str(file))
        if "get_config" not in module:
            raise JcmError(f"{file} has no get_config(mode): it is not a config")
        return module["get_config"](mode)
    except JcmError:
        raise
    except Exception as error:  # a config is code, which can fail in any way
        reason = one_line(error)
        raise JcmError(f"{file}: {type(error).__name__}: {reason}") from error


# Fields that must be at least so much.
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

# Fields between two bounds, the lower one allowed and the upper one not.
_BETWEEN = {
    "model.dropout": (0.0, 1.0),
    "loss.target_ema": (0.0, 1.0),
    "loss.start_ema": (1e-9, 1.0),
}


def check(config: ConfigDict) -> None:
    """Refuses values that no part of the program could use.

    Raises:
      JcmError: names the field and what it takes.
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
        raise JcmError("config.init.state=True needs config.init.model: name one")
    if config.eval.every_kimg > 0 and not config.eval.scores:
        raise JcmError(
            "config.eval.every_kimg needs config.eval.scores: name some, such as"
            " fd_efficientnet_lite0"
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
    """What every config ends with: applies its mode and locks the fields.

    Args:
      config: complete.
      mode: "" as it is, "smoke" shrunk to seconds.

    Raises:
      JcmError: for another mode.
    """
    if mode not in ("", "smoke"):
        raise JcmError(f"config mode {mode!r} is unknown: write nothing, or :smoke")
    if mode == "smoke":
        smoke(config)
    return config.lock()
