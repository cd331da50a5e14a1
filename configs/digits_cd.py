"""Consistency distillation on handwritten digits (8x8), in minutes on a CPU."""

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

    config.method = "cd"
    config.teacher = "configs/digits_edm.py"
    config.loss.metric = "pseudo_huber"
    config.loss.target_ema = 0.95
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.train.batch_size = 64
    config.train.num_steps = 800
    config.train.ema_rates = (0.99,)
    config.train.sample_every = 200
    config.train.checkpoint_every = 400
    config.sample.sigmas = (80.0, 0.8)
    config.eval.scores = ("classifier",)
    return config_lib.finish(config, mode)
