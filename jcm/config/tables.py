"""Every field of a config, with its default, its bounds and what it is."""

from jcm.runtime.fields import Field, Section

# Every section but `loss` and `teachers`, which the method of a config declares, and
# `teacher_train`, which those of methods with a teacher have.
_INIT = {
    "model": Field(
        "",
        "model to start from: anything that jcm.load opens; empty starts from a"
        " teacher, or from random weights without one",
    ),
    "state": Field(
        False,
        "whether to also take the step, averages and optimiser state of init.model, to"
        " continue its training",
    ),
}

_DATA = {
    "name": Field(
        "cifar10",
        "data set: cifar10, digits or image_folder; arrays for what was passed to"
        " jcm.train",
    ),
    "path": Field("", "folder of images for image_folder, or the archive of cifar10"),
    "split": Field("train", "part to train on and compare with, such as train[:90%]"),
    "dir": Field(
        "", "prepared data sets; empty uses $JCM_CACHE/data or ~/.cache/jcm/data"
    ),
    "image_size": Field(32, "height and width in pixels", least=1),
    "channels": Field(3, "3 for colour, 1 for grey", least=1, most=3),
    "flip": Field(True, "whether to flip random images horizontally"),
    "skip_broken": Field(
        False, "whether to skip unreadable images instead of stopping"
    ),
    "cache_mib": Field(
        1024, "largest data set that is kept in memory, in MiB", least=0
    ),
    "workers": Field(
        1, "threads that prepare batches ahead of time; 0 for none", least=0, most=1024
    ),
}

# The noise levels of EDM (Karras et al. 2022).
_NOISE = {
    "sigma_data": Field(0.5, "standard deviation of the data", above=0),
    "sigma_min": Field(0.002, "smallest noise level", above=0),
    "sigma_max": Field(80.0, "largest noise level", above=0),
    "rho": Field(7.0, "exponent that spaces the noise levels of a grid", above=0),
}

_NCSNPP = {
    "embedding_type": Field(
        "fourier", "embedding of the noise level: fourier or positional"
    ),
    "fourier_scale": Field(
        16.0, "standard deviation of the Fourier frequencies", above=0
    ),
    "progressive_input": Field(
        "residual", "whether smaller copies of the input join: residual or none"
    ),
    "fir_kernel": Field(
        (1.0, 3.0, 3.0, 1.0), "taps of the resampling filter", above=0, some=True
    ),
}

_ADM = {
    "num_heads": Field(
        0, "attention heads; 0 computes them from head_channels", least=0
    ),
    "head_channels": Field(
        64, "channels of each attention head; 0 with num_heads", least=0
    ),
    "time_scale": Field(
        1000.0, "factor of the noise input: OpenAI 1000, NVlabs 1", above=0
    ),
    "scale_shift_norm": Field(
        True, "whether the embedding scales and shifts the normalisation in blocks"
    ),
    "resblock_updown": Field(True, "whether residual blocks change the resolution"),
}

_MODEL: Section = {
    "name": Field("ncsnpp", "architecture: ncsnpp or adm"),
    "class_conditional": Field(False, "whether the network takes class labels"),
    "nf": Field(128, "channels at full resolution, before ch_mult", least=1),
    "ch_mult": Field(
        (2, 2, 2), "multiplier of nf at each level, full resolution first", least=1
    ),
    "num_res_blocks": Field(4, "residual blocks of each level", least=0),
    "attn_resolutions": Field((16,), "image sizes with self-attention", least=1),
    "dropout": Field(0.0, "dropout rate inside the residual blocks", least=0, below=1),
    "dtype": Field("float32", "type of the computation: float32 or bfloat16"),
    "remat": Field(
        (),
        "image sizes whose layers are computed again in the backward pass, which saves"
        " memory and takes time",
        least=1,
        kinds=(int,),
    ),
    "times": Field(
        1, "time inputs: 1, or 2 for a method with a second time", least=1, most=2
    ),
    "augment_dim": Field(
        0, "numbers that describe the augmentation of an image; 0 for none", least=0
    ),
    "guidance": Field(False, "whether the network takes a guidance strength"),
    "ncsnpp": _NCSNPP,
    "adm": _ADM,
}

_OPTIM = {
    "name": Field("radam", "optimiser: radam or adam"),
    "learning_rate": Field(4e-4, "learning rate after the warm-up", least=0),
    "warmup_kimg": Field(
        0.0, "length of the linear warm-up, in thousands of images", least=0
    ),
    "schedule": Field(
        "constant",
        "learning rate after the warm-up: constant, linear (falls to 0 at the end of"
        " the run) or inverse_sqrt (falls after decay_kimg)",
    ),
    "decay_kimg": Field(
        0.0,
        "inverse_sqrt: thousands of images after which the learning rate falls",
        least=0,
    ),
    "b1": Field(0.9, "decay rate of the first moment", least=0, below=1),
    "b2": Field(0.999, "decay rate of the second moment", least=0, below=1),
    "eps": Field(1e-8, "term added to the denominator", least=0),
    "grad_clip": Field(
        0.0, "largest global norm of the gradient; 0 does not clip", least=0
    ),
    "zero_nonfinite": Field(
        False,
        "whether NaN in the gradient of a finite loss becomes 0, and an infinite value"
        " 1e5",
    ),
}

_TRAIN = {
    "batch_size": Field(512, "images per step, over all devices", least=1),
    "num_steps": Field(800_000, "steps of the whole run", least=1, below=2**31),
    "accumulate": Field(1, "micro-batches per step", least=1),
    "skip_nonfinite": Field(
        0,
        "consecutive steps to skip because their loss or gradient is not finite, before"
        " the run stops; 0 stops at the first one",
        least=0,
    ),
    "averages": Field(
        ("0.9999",),
        "averages of the weights, each a rate such as 0.9999, a half-life in millions"
        " of images with an optional ramp such as halflife:0.5/0.05, or a power"
        " function of relative width such as power:0.05; samples use the first",
    ),
    "snapshot_every": Field(
        0,
        "steps between two snapshots of the power averages, which are never deleted; 0"
        " for none",
        least=0,
    ),
    "log_every": Field(100, "steps between two log lines", least=1),
    "sample_every": Field(
        10_000, "steps between two sample grids; 0 for the end only", least=0
    ),
    "checkpoint_every": Field(
        10_000, "steps between two checkpoints; 0 for the end only", least=0
    ),
    "keep_checkpoints": Field(2, "newest checkpoints to keep", least=1),
}

# The section in which a config has each field of `config.teacher_train`.
TEACHER_SECTIONS = {
    "num_steps": "train",
    "batch_size": "train",
    "accumulate": "train",
    "learning_rate": "optim",
    "warmup_kimg": "optim",
    "log_every": "train",
    "sample_every": "train",
    "checkpoint_every": "train",
}
_TEACHER_TRAIN = {
    name: {"train": _TRAIN, "optim": _OPTIM}[section][name].left_open(
        "uses that of the teacher's config"
    )
    for name, section in TEACHER_SECTIONS.items()
}

_MESH = {
    "fsdp": Field(1, "devices that share one copy of the parameters", least=1),
    # With 8 devices, each holds 12.7 % of ImageNet-64's network with 0.5, 13.2 % with 1
    # and 27 % with 4.
    "fsdp_min_mib": Field(
        0.5, "size in MiB below which tensors are replicated", least=0
    ),
    "rules": Field(
        (),
        "exceptions, of which the first match counts: REGULAR-EXPRESSION=AXIS splits"
        " the tensors with matching names along an axis, REGULAR-EXPRESSION=none"
        " replicates them",
        kinds=(str,),
    ),
}

_PROFILE = {
    "steps": Field(
        (),
        "(FIRST, LAST) step to trace for TensorBoard or Perfetto",
        least=1,
        kinds=(int,),
    ),
}

_SAMPLE = {
    "sigmas": Field(
        (80.0, 0.5853),
        "consistency models: noise level of each step; one step uses the first",
        above=0,
        some=True,
    ),
    "steps": Field(18, "diffusion models: points of the noise grid", least=2),
    "solver": Field("heun", "diffusion models: ODE solver, heun or euler"),
    "seed": Field(0, "seed of the noise", least=0, below=2**32),
    "num_images": Field(64, "images to sample", least=1),
    "batch_size": Field(
        64, "images per call of the sampler, over the local devices", least=1
    ),
    "labels": Field(
        (),
        "classes by number or name, repeated in turn; () uses every class in turn",
        least=0,
        kinds=(int, str),
    ),
    "model": Field(
        "", "anything that jcm.load opens; empty uses the workdir's own model"
    ),
    "step": Field(0, "step of the checkpoint to use; 0 uses the newest", least=0),
    "ema": Field(
        "",
        "weights to use: an average of train.averages, params or target_params; empty"
        " uses the first average",
    ),
}

_EVAL = {
    "scores": Field(
        ("fd_efficientnet_lite0",),
        "scores to compute, of which the first counts: classifier, fid, sfid, kid,"
        " inception_score, precision_recall, density_coverage, fd_dinov2 or"
        " fd_efficientnet_lite0",
    ),
    "reference": Field(
        "",
        "folder of real pictures to compare with instead of the data set, or file"
        " (.npz) with published statistics of real images for Inception",
    ),
    "num_images": Field(1000, "samples per model, way of sampling and seed", least=2),
    "seeds": Field(
        (0,),
        "seeds of the samples; each gives one value of a score",
        least=0,
        below=2**32,
        some=True,
    ),
    "keep_samples": Field(False, "whether to keep the samples as .npz files"),
    "watch": Field(
        False,
        "whether to evaluate every checkpoint as it appears, until training ends",
    ),
    "every_kimg": Field(
        0.0,
        "thousands of images between two evaluations during training; 0 for none",
        least=0,
    ),
}

_SEARCH = {
    "score": Field(
        "",
        "column of the score table to optimise; empty uses that of the first of"
        " eval.scores",
    ),
    "steps": Field(2, "sampling steps, and so noise levels, to find", least=2),
    "points": Field(40, "noise levels of the grid to choose from", least=2),
    "seed": Field(
        1234,
        "seed of the samples that are compared; not one of eval.seeds",
        least=0,
        below=2**32,
    ),
}


def sections(method: str) -> Section:
    """Returns every field that a config of a method has.

    `_FREE` in `run/workdir.py` names those that may change when a run resumes.

    Args:
      method: its name, such as "cd".

    Raises:
      JcmError: if there is no such method.
    """
    from jcm import methods  # imports JAX, which the list of configs does not need

    recipe = methods.recipe(method)
    return {
        "method": Field(method, f"training method: {', '.join(methods.NAMES)}"),
        "seed": Field(
            0, "seed of the initial weights and of training", least=0, below=2**32
        ),
        "weights": Field(
            "",
            "folder with the weights of published metric and score networks; empty uses"
            " $JCM_CACHE/weights or ~/.cache/jcm/weights and downloads missing files",
        ),
        "teachers": {name: _teacher(kind) for name, kind in recipe.teachers.items()},
        **({"teacher_train": _TEACHER_TRAIN} if recipe.teachers else {}),
        "init": _INIT,
        "data": _DATA,
        "noise": _NOISE,
        "model": _MODEL,
        "loss": recipe.settings,
        "optim": _OPTIM,
        "train": _TRAIN,
        "mesh": _MESH,
        "profile": _PROFILE,
        "sample": _SAMPLE,
        "eval": _EVAL,
        "search": _SEARCH,
    }


def _teacher(kind: str) -> Field:
    return Field(
        "",
        f"teacher, a {kind} model: anything that jcm.load opens, or a config file, to"
        " train it first, in WORKDIR/teachers and with config.teacher_train",
    )
