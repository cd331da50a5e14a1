"""Class-conditional consistency distillation on ImageNet 64x64 with Heun and LPIPS.

Source: Song et al. 2023, Table 3, and scripts/launch.sh of their PyTorch code.
Expected score: FID 6.20 in one step, 4.70 in two steps (sigma 80, 1.3824).

The released teacher can be used too: --config.teachers.diffusion=openai/edm-imagenet64.

Set the folder, with one sub-folder for each class, by --config.data.path=DIR. Pictures
are cropped to the central square and reduced by averaging. The published data sets of
this name were reduced in other ways: docs/data.md compares them.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("cd")
    config_lib.presets().imagenet64(config)
    config.teachers.diffusion = "configs/imagenet64_edm.py"
    config.loss.num_scales = 40
    config.loss.target_ema = 0.95
    config.optim.learning_rate = 8e-6
    config.train.num_steps = 600_000
    config.sample.sigmas = (80.0, 1.3824)
    return config_lib.finish(config, mode)
