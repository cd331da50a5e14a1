"""Consistency training on CIFAR-10 with LPIPS and adaptive N(k) and mu(k).

Source: Song et al. 2023, Table 3, and configs/cifar10_ve_ct_adaptive.py of their code.
Expected score: FID 8.70 in one step, 5.83 in two steps. The authors published the
weights of step 740,000, which they chose afterwards.

For fixed N and mu, use --config.loss.scales=fixed --config.loss.num_scales=120
--config.loss.target_ema=0.99.
"""

from jcm import config as config_lib


def get_config(mode: str = "") -> config_lib.ConfigDict:
    """Returns the config; `mode` is "" or "smoke"."""
    config = config_lib.base("ct")
    config.loss.scales = "adaptive"
    config.sample.sigmas = (80.0, 0.821)
    return config_lib.finish(config, mode)
