"""Tests of the placement of arrays: bytes per device, slices, exceptions."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jcm import config as config_lib
from jcm.model import build
from jcm.run import state
from jcm.runtime import sharding
from jcm.runtime.errors import JcmError
from jcm.training import optim


@functools.cache
def _training_of_imagenet64():
    """Returns the shapes of all arrays of a distillation, with the teacher."""
    config = config_lib.load("configs/imagenet64_cd.py")
    config.loss.metric = "l2"  # Its weights are not those of the network.
    network = build.network(config, num_classes=1000)
    new_state = functools.partial(
        state.create,
        head=None,
        optimizer=optim.create(config.optim),
        keeps_target=True,
        averages=config.train.averages,
    )
    made = jax.eval_shape(new_state, network.shapes)
    return {"state": made, "teacher": network.shapes}, config


def _placed(mesh, tree, rules):
    return sharding.with_placement(
        tree, functools.partial(sharding.shard_tree, mesh, rules=rules)
    )


def test_eight_devices_hold_an_eighth_each():
    tree, config = _training_of_imagenet64()
    rules = sharding.Rules.of(config.mesh)
    one, eight = (_placed(sharding.make_mesh(fsdp), tree, rules) for fsdp in (1, 8))
    alone, shared = map(sharding.bytes_per_device, (one, eight))
    assert alone == sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
    # Parameters, average, two moments and teacher have 296 million numbers each.
    assert alone > 5 * 295_000_000 * 4
    assert shared <= 1.05 * alone / 8
    assert "% of" in sharding.overview(eight)


def test_copies_of_a_parameter_have_the_same_placement():
    tree, config = _training_of_imagenet64()
    mesh = sharding.make_mesh(fsdp=4)
    rules = sharding.Rules(config.mesh.fsdp_min_mib * 2**20, (("conv0/kernel", 2),))
    placed = sharding.shard_tree(mesh, tree, rules)
    run = placed["state"]
    by_place = {
        "params": run.params,
        "average": run.ema_params["0.999943"],
        "moments": run.opt_state[1].mu,
        "teacher": placed["teacher"],
    }
    first = jax.tree.leaves(by_place["params"])
    assert any(not leaf.is_fully_replicated for leaf in first)
    for name, other in by_place.items():
        assert jax.tree.leaves(other) == first, name


@dataclasses.dataclass(frozen=True)
class _Device:
    id: int
    slice_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def _slices(count, x, y, z=1, kind="TPU v5 lite"):
    places = list(itertools.product(range(count), range(z), range(y), range(x)))
    return [
        _Device(id=number, slice_index=part, coords=place[::-1], device_kind=kind)
        for number, (part, *place) in enumerate(places)
    ]


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5", "TPU v5 lite", "TPU v6 lite"])
@pytest.mark.parametrize("count", [1, 2])
def test_groups_of_any_size_fit_into_a_slice(kind, count):
    devices = _slices(count, 4, 4, 4 if kind in ("TPU v4", "TPU v5") else 1, kind)
    fsdp = 1
    while fsdp <= len(devices) // count:
        grid = sharding.device_grid(devices, fsdp)
        assert grid.shape == (len(devices) // fsdp, fsdp)
        assert {device.id for device in grid.flat} == set(range(len(devices)))
        for group in grid:
            assert len({device.slice_index for device in group}) == 1
        fsdp *= 2


def test_groups_of_gpus_may_span_machines():
    gpus = [
        _Device(
            *(number, number // 2),
            process_index=number // 2,
            platform="gpu",
            device_kind="NVIDIA H100",
        )
        for number in range(8)
    ]
    ids = [[gpu.id for gpu in group] for group in sharding.device_grid(gpus, fsdp=4)]
    assert ids == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_no_group_spans_two_slices():
    devices = _slices(4, 4, 2)
    grid = sharding.device_grid(devices, fsdp=4)
    assert grid.shape == (8, 4)
    for group in grid:
        assert len({device.slice_index for device in group}) == 1
    assert {device.id for device in grid.flat} == set(range(32))
    # Only sums over `data` use the slow network.
    assert [row[0].slice_index for row in grid] == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(JcmError, match="of each of 4 slices, 8"):
        sharding.device_grid(devices, fsdp=16)
    with pytest.raises(JcmError, match="slices differ in their devices, {0: 8, 1: 4}"):
        sharding.device_grid(devices[:12], fsdp=4)


def _spec(rules, **shapes):
    tree = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()
    }
    mesh = sharding.make_mesh(fsdp=4)
    placed = sharding.shard_tree(mesh, tree, rules)
    return {name: placed[name].spec for name in shapes}


def test_the_first_matching_exception_applies():
    rules = sharding.Rules(1e9, (("k.rnel$", 2), ("norm|kernel2", None), ("k", 0)))
    assert _spec(rules, kernel=(8, 4, 4), kernel2=(8, 8), k=(8,), other=(8, 8)) == {
        "kernel": PartitionSpec(None, None, "fsdp"),
        "kernel2": PartitionSpec(),
        "k": PartitionSpec("fsdp"),
        "other": PartitionSpec(),
    }
    # A scalar is never split.
    assert _spec(sharding.Rules(0, (("count", 0),)), count=()) == {
        "count": PartitionSpec()
    }


def test_impossible_exceptions_raise():
    with pytest.raises(JcmError, match=r"axis 1 of kernel, whose shape \(8,\)"):
        _spec(sharding.Rules(0, (("kernel", 1),)), kernel=(8,))
    with pytest.raises(JcmError, match="has no such axis that divides by fsdp=4"):
        _spec(sharding.Rules(0, (("kernel", 0),)), kernel=(6,))
    tree = {"kernel": np.zeros(4), "bias": np.zeros(4)}
    with pytest.raises(JcmError, match="'kernal' matches no tensor: .* such as kernel"):
        sharding.check_rules_match(tree, sharding.Rules(0, (("kernal", 0),)))
    for text in ("kernel", "kernel=x", "(=1", "=1", "kernel=-1"):
        config = ml_collections.ConfigDict({"rules": (text,), "fsdp_min_mib": 4.0})
        with pytest.raises(JcmError, match="config.mesh.rules: .* cannot be parsed"):
            sharding.Rules.of(config)
    config.rules = ("norm=none", "a=b/kernel=3")
    assert sharding.Rules.of(config).exceptions == (("norm", None), ("a=b/kernel", 3))


def test_a_process_provides_the_rows_of_its_devices():
    devices = jax.devices()
    mesh = sharding.make_mesh(fsdp=2, devices=[devices[i] for i in (6, 1, 2, 7, 4, 5)])
    place = sharding.batch(mesh)
    assert sharding.rows(place, 12).tolist() == list(range(12))

    class OfOneProcess:
        """A process with devices 1 and 7, which are not neighbours in the mesh."""

        def addressable_devices_indices_map(self, shape):
            every = place.devices_indices_map(shape)
            return {d: where for d, where in every.items() if d.id in (1, 7)}

    rows = getattr(sharding.rows, "__wrapped__", sharding.rows)
    assert rows(OfOneProcess(), 12).tolist() == [2, 3, 6, 7]
