"""Settings that several configs share; each function sets some fields."""

from ml_collections import ConfigDict


def digits(config: ConfigDict) -> None:
    """Sets what the three digits configs share: data and a small network."""
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.flip = False  # a mirrored digit is not a digit
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
    """Sets what the three folder configs share: a 32x32 network for a small machine.

    The average has the half-life of the rate 0.999, with a ramp for short runs.
    """
    config.data.name = "image_folder"
    config.data.image_size = 32
    config.model.nf = 64
    config.model.num_res_blocks = 2
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.sample_every = 1000
    config.train.checkpoint_every = 1000
    config.train.averages = ("halflife:0.044/0.05",)


def _large(config: ConfigDict) -> None:
    """Sets what the published networks for 64x64 and larger share."""
    config.data.name = "image_folder"
    config.model.name = "adm"
    config.model.attn_resolutions = (32, 16, 8)
    config.model.dtype = "bfloat16"
    if "metric_dtype" in config.loss:
        config.loss.metric_dtype = "bfloat16"
    config.train.averages = ("0.999943",)


def imagenet64(config: ConfigDict) -> None:
    """Sets what the three ImageNet-64 configs share: data and the published network."""
    _large(config)
    config.data.image_size = 64
    config.model.class_conditional = True
    config.model.remat = (64, 32, 16, 8)
    config.model.nf = 192
    config.model.ch_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = 3
    config.train.batch_size = 2048


def lsun256(config: ConfigDict) -> None:
    """Sets what the three LSUN configs share: data and the published network."""
    _large(config)
    config.data.image_size = 256
    config.model.remat = (256, 128, 64, 32, 16, 8)
    config.model.nf = 256
    config.model.ch_mult = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.adm.scale_shift_norm = False
    config.train.batch_size = 256
