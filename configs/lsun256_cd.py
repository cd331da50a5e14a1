"""Consistency distillation on LSUN Bedroom or Cat 256x256 with Heun and LPIPS.

Source: Song et al. 2023, Table 3, and scripts/launch.sh of their PyTorch code. The
batch size is that of the code; the table has 2048.
Expected score: FID 7.80 in one step, 5.22 in two steps (sigma 80, 4.3656) on Bedroom;
11.0 and 8.84 on Cat.

The released teachers can be used too:
--config.teachers.diffusion=openai/edm-bedroom256 or openai/edm-cat256.

Set the folder of pictures by --config.data.path=DIR. They are cropped to the central
square and reduced by averaging, as by the authors.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("cd")
    config_lib.presets().lsun256(config)
    config.teachers.diffusion = "configs/lsun256_edm.py"
    config.loss.num_scales = 40
    config.loss.target_ema = 0.95
    config.optim.learning_rate = 1e-5
    config.train.num_steps = 600_000
    config.sample.sigmas = (80.0, 4.3656)
    return config_lib.finish(config, mode)
