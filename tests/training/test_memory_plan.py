"""Tests of the plan of the memory of a step, and of runs that do not fit."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcm import config as config_lib
from jcm.commands import train as train_lib
from jcm.methods import Frozen
from jcm.run.state import State
from jcm.runtime import memory, sharding
from jcm.runtime.errors import JcmError
from jcm.training import memory_plan
from jcm.training.memory_plan import Plan


def test_the_parts_are_the_bytes_on_one_device():
    mesh = sharding.make_mesh(fsdp=4)

    def shapes(count, split=True):
        spec = ("fsdp",) if split else ()
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return {"w": jax.ShapeDtypeStruct((count,), jnp.float32, sharding=place)}

    state = State(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=shapes(400),
        target_params=None,
        ema_params={"0.9": shapes(400), "0.99": shapes(400)},
        opt_state=(shapes(400), shapes(100, split=False)),
        head=shapes(200),
        head_opt_state=shapes(400),
    )
    frozen = Frozen(teachers={"one": shapes(400, split=False)}, constants=None)
    compiled = types.SimpleNamespace(
        memory_analysis=lambda: types.SimpleNamespace(temp_size_in_bytes=7)
    )
    made = memory_plan.make(state, frozen, shapes(40), compiled, limit=9000)
    assert made.parts == {
        "parameters": 400,
        "averages": 800,
        "optimizer": 400 + 400,
        "head": 200 + 400,
        "teachers": 1600,
        "batches": 80,
        "step": 7,
    }
    assert made.limit == 9000
    assert made.total == 400 + 800 + 800 + 600 + 1600 + 80 + 7


def test_a_plan_that_fits_is_printed():
    made = Plan({"parameters": 3 << 20, "step": 2 << 20}, limit=6 << 20)
    assert str(made) == "memory per device: 5 of 6 MiB (parameters 3, step 2)"
    memory_plan.check(made, config_lib.base())
    memory_plan.check(Plan({"step": 1 << 60}, limit=None), config_lib.base())


@pytest.mark.parametrize(
    ("changes", "advised", "not_advised"),
    [
        ({}, ("mesh.fsdp=N", "model.remat", "bfloat16"), ()),
        ({"mesh.fsdp": 8}, ("model.remat", "bfloat16"), ("fsdp",)),
        ({"model.remat": (32,)}, ("fsdp", "bfloat16"), ("remat",)),
        ({"model.dtype": "bfloat16"}, ("fsdp", "remat"), ("bfloat16",)),
    ],
)
def test_advice_leaves_out_what_was_done(changes, advised, not_advised):
    config = config_lib.base()
    config.update_from_flattened_dict(changes)
    with pytest.raises(
        JcmError, match="needs 6 MiB on each device, which has 5: "
    ) as info:
        memory_plan.check(Plan({"step": 6 << 20}, limit=5 << 20), config)
    for text in advised:
        assert text in str(info.value)
    for text in not_advised:
        assert text not in str(info.value)
    assert "train.batch_size" in str(info.value)


def test_a_compiler_out_of_memory_is_an_error_of_one_line_with_advice():
    text = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory\nin"
    with pytest.raises(JcmError, match="does not fit .*fsdp=N.*XLA:TPU") as info:
        with memory_plan.explain_exhaustion(config_lib.base(), jax.devices()):
            raise jax.errors.JaxRuntimeError(text)
    assert "\n" not in str(info.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with memory_plan.explain_exhaustion(config_lib.base(), jax.devices()):
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_a_run_that_does_not_fit_raises_before_its_first_step(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory_plan, "limit", lambda: 1000)
    with pytest.raises(JcmError, match="a step needs .* on each device"):
        train_lib.train(tiny("digits_edm"), tmp_path)
    assert not list(tmp_path.glob("metrics.jsonl"))
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    alone = memory_plan.limit()
    if alone is None:
        pytest.skip("this system does not report its free memory")
    monkeypatch.setattr(memory, "available", lambda: 8000)
    assert memory_plan.limit() == 8000 // jax.local_device_count()
    monkeypatch.setattr(
        memory_plan.distributed, "gather", lambda here: np.array([here, here, here + 1])
    )
    assert memory_plan.limit() == 4000 // jax.local_device_count()


def test_the_free_memory_is_plausible():
    free = memory.available()
    assert free is None or 2**20 < free < 2**50
