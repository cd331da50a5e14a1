"""Tests of checkpoints: damage is detected, and the devices may change."""

import contextlib
import gc
import json
import math
import os
import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcm.run import checkpoints as checkpoints_lib
from jcm.run.checkpoints import Checkpoints
from jcm.run.checksums import checksums
from jcm.run.state import State
from jcm.runtime import distributed, sharding
from jcm.runtime.errors import JcmError

# If a part cannot be read, orbax abandons the tasks that read the others. Python warns
# about them when it collects them.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(checkpoints_lib, "_RETRY_SECONDS", 0)


@pytest.fixture(autouse=True, scope="module")
def _collect():
    yield
    gc.collect()


def _state(step, mesh):
    """Returns a small state, split over `fsdp` where that is possible."""
    rng = np.random.default_rng(step)

    def draw():
        return {
            "kernel": rng.normal(size=(3, 3, 32, 64)).astype(np.float32),
            "bias": rng.normal(size=64).astype(np.float32),
        }

    state = State(
        step=np.int32(step),
        params=draw(),
        target_params=draw(),
        ema_params={"0.9": draw()},
        opt_state={"count": np.int32(step), "mu": draw()},
    )
    placed = sharding.shard_tree(mesh, state, sharding.Rules(1000))
    return jax.device_put(state, placed)


def _log(step):
    return {"totals": {"loss": [step / 3, 2.0], "wait": [math.nan, 2.0]}, "skipped": 1}


def _template(mesh):
    state = _state(0, mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        state,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints of steps 4 and 8."""
    workdir = tmp_path_factory.mktemp("saved")
    mesh = sharding.make_mesh(fsdp=4)
    with Checkpoints(workdir, keep=3) as checkpoints:
        for step in (4, 8):
            checkpoints.save(_state(step, mesh), _log(step))
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def _assert_equal(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_another_number_of_devices_restores_the_same_bits(saved, fsdp):
    mesh = sharding.make_mesh(fsdp, devices=jax.devices()[: max(fsdp, 2)])
    with Checkpoints(saved, keep=3) as checkpoints:
        state, log = checkpoints.restore(_template(mesh))
    assert state.step == 8
    _assert_equal(state, _state(8, mesh))
    assert json.dumps(log) == json.dumps(_log(8))  # NaN is not equal to itself.
    for leaf, like in zip(*map(jax.tree.leaves, (state, _template(mesh))), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def _truncate(path, rng):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _remove(path, rng):
    path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip, _remove])
@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_checkpoint_is_set_aside_or_read_correctly(copy, damage, seed):
    rng = random.Random(seed)
    mesh = sharding.make_mesh(fsdp=4)
    newest = copy / "checkpoints" / "8"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    # The first seeds damage arrays, the others any file.
    arrays = [path for path in files if "d" in path.parts]
    chosen = rng.choice(arrays if seed < 3 else files)
    before = chosen.read_bytes()
    damage(chosen, rng)
    assert not chosen.exists() or chosen.read_bytes() != before
    with Checkpoints(copy, keep=3) as checkpoints:
        state, log = checkpoints.restore(_template(mesh))
        _assert_equal(state, _state(int(state.step), mesh))
        assert json.dumps(log) == json.dumps(_log(int(state.step)))
        if state.step == 4:
            assert checkpoints.steps == [4]
            # A step of the same number can be written again.
            checkpoints.save(_state(8, mesh), _log(8))
            assert checkpoints.steps == [4, 8]
    if state.step == 4:
        assert (copy / "damaged" / "8").is_dir()
    else:  # The file does not matter, or the step no longer counts as complete.
        assert state.step == 8 and newest.exists()


@pytest.mark.parametrize("name", ["params/_METADATA", "checksums/pipe"])
def test_a_pipe_in_a_checkpoint_is_not_opened(copy, name):
    path = copy / "checkpoints" / "8" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with Checkpoints(copy, keep=3) as checkpoints:
        with pytest.raises(JcmError, match=f"8/{name} is not a regular file: replace"):
            checkpoints.restore_part("params", {}, 8)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "metrics/metrics"])
def test_a_pipe_that_would_describe_a_step_is_not_opened(copy, name):
    path = copy / "checkpoints" / "8" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for keep in (None, 3):
        with pytest.raises(JcmError, match=f"{path} is not a regular file: replace"):
            Checkpoints(copy, keep)


@pytest.mark.parametrize("text", ["[]", '{"metrics": 3}', "[" * 10**5])
def test_a_wrong_description_of_a_step_is_one_line(copy, text):
    (copy / "checkpoints" / "8" / "_CHECKPOINT_METADATA").write_text(text)
    with pytest.raises(JcmError, match=f"cannot list the steps in {copy}/checkpoints "):
        Checkpoints(copy)


def test_a_link_to_a_folder_in_a_checkpoint_is_refused(copy):
    part, elsewhere = copy / "checkpoints" / "8" / "checksums", copy / "elsewhere"
    part.rename(elsewhere)
    (elsewhere / "metadata").unlink()
    os.mkfifo(elsewhere / "metadata")
    part.symlink_to(elsewhere)
    with Checkpoints(copy, keep=3) as checkpoints:
        with pytest.raises(JcmError, match="8/checksums is a link to a folder: repl"):
            checkpoints.restore_part("params", {}, 8)
        assert checkpoints.restore(_template(sharding.make_mesh())).state.step == 4


def test_a_flipped_bit_of_an_array_is_always_detected(copy):
    """Even if the files can be read without an error."""
    mesh = sharding.make_mesh()
    state, wrong = _state(8, mesh), _state(8, mesh)
    words = np.array(wrong.params["kernel"]).view(np.uint32)
    words[1, 2, 3, 4] ^= 1 << 31
    wrong.params["kernel"] = jnp.asarray(words.view(np.float32))
    ours, theirs = checksums(state), checksums(wrong)
    differ = {name for name in ours if ours[name] != theirs[name]}
    assert differ == {"params/kernel"}
    # The disk returns other data than was written.
    with Checkpoints(copy, keep=3) as checkpoints:
        file = next((copy / "checkpoints" / "8" / "checksums").glob("*"))
        text = file.read_text()
        value = str(ours["ema_params/0.9/bias"])
        assert value in text
        file.write_text(text.replace(value, value[::-1]))
        with pytest.raises(JcmError, match="8/ema_params is damaged: its content"):
            checkpoints.restore_part("ema_params", _template(mesh).ema_params)
        assert checkpoints.restore(_template(mesh)).state.step == 4


def test_a_changed_digit_of_the_log_is_detected(copy):
    file = copy / "checkpoints" / "8" / "log" / "metadata"
    digits = str(8 / 3)
    assert digits in file.read_text()
    file.write_text(file.read_text().replace(digits, digits.replace("6", "5", 1)))
    with Checkpoints(copy, keep=3) as checkpoints:
        assert checkpoints.restore(_template(sharding.make_mesh())).state.step == 4
    assert (copy / "damaged" / "8").is_dir()


@pytest.mark.parametrize("change", [shutil.move, shutil.copytree])
def test_a_folder_with_the_name_of_another_step_is_not_used(copy, change):
    """Its arrays are undamaged, and it is newer than all others by its name."""
    folder, template = copy / "checkpoints", _template(sharding.make_mesh())
    change(folder / "8", folder / "11")
    with Checkpoints(copy, keep=3) as checkpoints:
        with pytest.raises(JcmError, match=r"/11 holds step 8, since .*renamed"):
            checkpoints.restore_part("params", template.params, 11)
        expected = 4 if change is shutil.move else 8
        assert checkpoints.restore(template).state.step == expected
    assert [path.name for path in (copy / "damaged").glob("1*")] == ["11"]


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_checksums_do_not_depend_on_the_devices(fsdp):
    one = _state(3, sharding.make_mesh(devices=jax.devices()[:1]))
    many = _state(3, sharding.make_mesh(fsdp))
    assert checksums(one) == checksums(many)
    assert checksums(one) != checksums(_state(4, sharding.make_mesh(fsdp)))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "bfloat16", "int32"])
def test_checksums_depend_on_the_order_for_all_types(dtype):
    values = np.array([0, 1, 1, 0, 1])
    sums = [
        checksums(jnp.asarray(each, dtype))[""] for each in (values, values[::-1] * 1)
    ]
    assert sums[0] != sums[1] != checksums(jnp.zeros(5, dtype))[""]


def test_if_all_checkpoints_are_damaged_none_is_moved(copy):
    for path in (copy / "checkpoints").glob("*/params/**/*"):
        if path.is_file():
            path.write_bytes(b"")
    with Checkpoints(copy, keep=3) as checkpoints:
        with pytest.raises(JcmError, match="cannot read .*checkpoints/8"):
            checkpoints.restore(_template(sharding.make_mesh()))
        assert checkpoints.steps == [4, 8]
    assert not (copy / "damaged").exists()


def test_a_second_damaged_checkpoint_of_one_step_is_kept_too(copy):
    (copy / "damaged" / "8").mkdir(parents=True)
    shutil.rmtree(copy / "checkpoints" / "8" / "params")
    with Checkpoints(copy, keep=3) as checkpoints:
        assert checkpoints.restore(_template(sharding.make_mesh())).state.step == 4
    assert sorted(p.name for p in (copy / "damaged").iterdir()) == [
        "8",
        "8_2",
        "README",
    ]


def test_old_checkpoints_that_a_kill_has_left_are_deleted(copy):
    folder, mesh = copy / "checkpoints", sharding.make_mesh()
    with Checkpoints(copy, keep=3) as checkpoints:
        checkpoints.save(_state(12, mesh), _log(12))
    shutil.rmtree(folder / "4" / "params")  # It was killed while it deleted.
    with Checkpoints(copy, keep=2) as checkpoints:
        assert checkpoints.restore(_template(mesh)).state.step == 12
        assert checkpoints.steps == [4, 8, 12]
        checkpoints.delete_old()
        assert checkpoints.steps == [8, 12]
    with Checkpoints(copy, keep=0) as checkpoints:
        checkpoints.delete_old()
        assert checkpoints.steps == [8, 12]


@pytest.mark.parametrize("fails", ["iterdir", "rmtree"])
def test_old_checkpoints_that_cannot_be_deleted_stay(copy, monkeypatch, fails):
    class Denied(Exception):
        """An error of an object store."""

    def deny(_):
        raise Denied

    with Checkpoints(copy, keep=1) as checkpoints:
        monkeypatch.setattr(type(checkpoints._folder), fails, deny)
        # The others wait here.
        monkeypatch.setattr(distributed, "barrier", lambda _: monkeypatch.undo())
        checkpoints.delete_old()
        assert checkpoints.steps == [4, 8]


def test_damaged_checkpoints_that_cannot_be_moved_end_all_processes(copy, monkeypatch):
    (copy / "damaged").write_text("")
    shutil.rmtree(copy / "checkpoints" / "8" / "params")
    agreed = []
    together = distributed.fail_together

    @contextlib.contextmanager
    def fail_together():
        with together():
            try:
                yield
            except JcmError as error:
                agreed.append(str(error))
                raise

    monkeypatch.setattr(distributed, "fail_together", fail_together)
    with Checkpoints(copy, keep=2) as checkpoints:
        with pytest.raises(JcmError, match="cannot move the damaged step 8"):
            checkpoints.restore(_template(sharding.make_mesh()))
    assert agreed[-1].startswith("cannot move the damaged step 8")


@pytest.mark.parametrize("by_a_file", [False, True])
def test_a_workdir_that_is_gone_is_named(copy, by_a_file):
    mesh = sharding.make_mesh()
    with Checkpoints(copy, keep=3) as checkpoints:
        copy.rename(copy.with_name("moved"))
        if by_a_file:
            copy.write_text("")
        message = f"cannot save step 12 in {copy}/checkpoints: {copy} was moved or del"
        with pytest.raises(JcmError, match=re.escape(message)):
            checkpoints.save(_state(12, mesh), _log(12))
    assert by_a_file or not copy.exists()  # Nothing creates it again.


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.restore(_template(sharding.make_mesh())) is None
        assert checkpoints.latest_step is None
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(JcmError, match="there is no checkpoint in"),
    ):
        checkpoints.restore_part("params", {})


def test_a_temporary_read_error_is_not_damage(copy, monkeypatch):
    read, calls = Checkpoints._read, []

    def sometimes(self, step, templates):
        calls.append(step)
        if len(calls) == 1:
            raise JcmError("the network is down")
        return read(self, step, templates)

    monkeypatch.setattr(Checkpoints, "_read", sometimes)
    with Checkpoints(copy, keep=3) as checkpoints:
        assert checkpoints.restore(_template(sharding.make_mesh())).state.step == 8
    assert calls == [8, 8] and not (copy / "damaged").exists()


def test_saving_a_step_that_exists_raises(copy):
    with (
        Checkpoints(copy, keep=3) as checkpoints,
        pytest.raises(JcmError, match="step 8 was not saved"),
    ):
        checkpoints.save(_state(8, sharding.make_mesh()), _log(8))
