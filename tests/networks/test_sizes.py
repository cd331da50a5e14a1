"""Tests of the bounds of networks, which a file of a stranger may describe."""

import dataclasses

import cost
import golden
import jax
import pytest

from jcm import networks
from jcm.networks import adm, sizes
from jcm.runtime.errors import JcmError

_NCSNPP = golden.network().arch
_ADM = adm.Architecture(
    image_size=16,
    image_channels=3,
    num_classes=0,
    nf=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    dropout=0.0,
    dtype="float32",
    remat=(),
    num_heads=1,
    head_channels=0,
    time_scale=1.0,
    scale_shift_norm=True,
    resblock_updown=True,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_res_blocks": 20_000}, "num_res_blocks is 20000: use at most 500"),
        ({"num_res_blocks": 10**30}, "num_res_blocks is 1000"),
        (
            {"num_res_blocks": 200},
            "num_res_blocks=200 makes .* layers: use at most 500",
        ),
        ({"ch_mult": (1,) * 10**6}, "ch_mult has 1,000,000 levels: use at most 12"),
        ({"ch_mult": (1, 10**9)}, "use from 1 to 65,536 channels at each level"),
        ({"ch_mult": (1, 0)}, "use from 1 to 65,536 channels at each level"),
        ({"nf": 10**30}, "config.model.nf is 1000"),
        ({"image_size": 2**30}, "config.data.image_size is 1073741824: use at most"),
        ({"image_channels": 10**9}, "config.data.channels is 1000000000: use at most"),
        ({"num_classes": 10**9}, "number of classes is 1000000000: use at most"),
        ({"augment_dim": 10**9}, "augment_dim is 1000000000: use at most"),
    ],
    ids=str,
)
@pytest.mark.parametrize("arch", [_NCSNPP, _ADM], ids=["ncsnpp", "adm"])
def test_an_absurd_network_is_never_built(tmp_path, arch, change, message):
    for build in (networks.build, lambda arch: networks.build_for(arch, 10**9)):
        with cost.limited(tmp_path), pytest.raises(JcmError, match=message):
            build(dataclasses.replace(arch, **change))


def test_a_filter_has_few_taps():
    for taps in ((), (1.0,) * 100_000):
        with pytest.raises(JcmError, match="taps: use from 1 to 32"):
            networks.build(dataclasses.replace(_NCSNPP, fir_kernel=taps))


def test_a_network_has_at_most_as_many_layers_as_tensors():
    arch = dataclasses.replace(_ADM, num_res_blocks=90)
    count = len(arch.layers)
    assert count < sizes.MOST_LAYERS
    with pytest.raises(
        JcmError, match=f"{count - 1} tensors cannot be a network of {count} layers"
    ):
        networks.build_for(arch, count - 1)
    few = networks.build_for(_ADM, len(_ADM.layers))
    assert len(jax.tree.leaves(few.shapes)) > len(_ADM.layers)
