"""EDM diffusion model on handwritten digits (8x8): the teacher of digits_cd."""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """All settings; `mode` is "" or "smoke"."""
    config = config_lib.base()
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.flip = False  # a mirrored digit is no digit
    config.model.nf = 32
    config.model.ch_mult = (1, 1)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = ()

    config.method = "edm"
    config.optim.name = "adam"
    config.optim.learning_rate = 2e-3
    config.optim.warmup_kimg = 5.0
    config.train.batch_size = 64
    config.train.num_steps = 1500
    config.train.ema_rates = (0.998,)
    config.train.sample_every = 500
    config.train.checkpoint_every = 500
    config.eval.scores = ("classifier",)
    return config_lib.finish(config, mode)
