"""What a run begins with: models of others as teacher, weights, or a whole training."""

import folders
import golden
import jax
import numpy as np
import pytest
from flax import serialization

import jcm
from jcm import model
from jcm import train as train_lib
from jcm.checkpoints import Checkpoints
from jcm.errors import JcmError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(16):
        folders.save(folder / f"{seed}.png", seed, (16, 16))
    return folder


@pytest.fixture
def config(tiny, pictures):
    """Of the network that the numbers of the original were made with."""

    def get(name, **changes):
        small = golden.CONFIG
        return tiny(
            name,
            **{
                "data.name": "image_folder",
                "data.path": str(pictures),
                "data.image_size": 16,
                "data.channels": 3,
                "model.nf": small["nf"],
                "model.ch_mult": small["ch_mult"],
                "model.num_res_blocks": small["num_res_blocks"],
                "model.attn_resolutions": small["attn_resolutions"],
                "loss.metric": "l2",
                "train.batch_size": 8,
                "train.log_every": 1,
                "train.sample_every": 0,
                "train.checkpoint_every": 0,
                **changes,
            },
        )

    return get


def _nested(flat):
    tree = {}
    for name, array in flat.items():
        *parts, leaf = name.split("/")
        branch = tree
        for part in parts:
            branch = branch.setdefault(part, {})
        branch[leaf] = np.asarray(array)
    return tree


def _drawn(seed, like):
    random = np.random.RandomState(seed)
    return {
        name: (0.05 * random.standard_normal(array.shape)).astype(np.float32)
        for name, array in sorted(like.items())
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A training of the original code after 20,000 steps: the file, and its trees."""
    ema = {
        name.removeprefix("params_ema/"): np.asarray(array)
        for name, array in golden.arrays("A_cfg1_params_ema.npz").items()
    }
    trees = {"params_ema": ema}
    for seed, name in enumerate(("params", "target_params", "mu", "nu")):
        trees[name] = _drawn(seed, ema)
    trees["nu"] = {name: array**2 for name, array in trees["nu"].items()}
    state = {
        "step": np.int32(20_000),
        "lr": np.float32(4e-4),
        "params": _nested(trees["params"]),
        "target_params": _nested(trees["target_params"]),
        "params_ema": _nested(ema),
        "model_state": {},
        "opt_state": {
            "0": {
                "count": np.int32(20_000),
                "mu": _nested(trees["mu"]),
                "nu": _nested(trees["nu"]),
            },
            "1": {},
            "2": {},
        },
    }
    path = tmp_path_factory.mktemp("original") / "edm_checkpoint_2"
    path.write_bytes(serialization.to_bytes(state))
    return path, {name: golden.from_original(tree) for name, tree in trees.items()}


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


class _Stop(Exception):
    pass


@pytest.fixture
def states(monkeypatch):
    """The states that steps are called with; the first stops the run where asked."""
    seen = []
    compile_step = train_lib.compile_step

    def spy(*args, **kwargs):
        step = compile_step(*args, **kwargs)

        def run(state, frozen, batch):
            seen.append(jax.device_get(state))
            return step(state, frozen, batch)

        return run

    monkeypatch.setattr(train_lib, "compile_step", spy)
    return seen


def test_a_training_of_the_original_goes_on(config, original, states, tmp_path):
    path, trees = original
    settings = {
        "init.model": str(path),
        "init.state": True,
        "train.num_steps": 20_002,
        "train.ema_rates": (0.9999, 0.99),
    }
    config = config("cifar10_ct", **settings)
    train_lib.train(config, tmp_path / "run")
    first, second = states
    assert (first.step, second.step) == (20_000, 20_001)
    _same(first.params, trees["params"])
    _same(first.target_params, trees["target_params"])
    for rate in ("0.9999", "0.99"):
        _same(first.ema_params[rate], trees["params_ema"])
    moments = next(part for part in first.opt_state if hasattr(part, "mu"))
    assert moments.count == 20_000
    _same(moments.mu, trees["mu"])
    _same(moments.nu, trees["nu"])
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step == 20_002
    # Of our own run the whole state goes on as well, with another length.
    with config.unlocked():
        config.init.model = str(tmp_path / "run")
        config.train.num_steps = 20_003
    train_lib.train(config, tmp_path / "next")
    assert states[-1].step == 20_002
    _same(
        states[-1].params,
        jax.device_get(model.load(tmp_path / "run", ema="params").params),
    )
    with config.unlocked():
        config.train.num_steps = 20_000
    with pytest.raises(
        JcmError, match="has done 20002 steps: raise config.train.num_s"
    ):
        train_lib.train(config, tmp_path / "short")


def test_weights_of_others_begin_and_teach(config, original, states, tmp_path):
    path, trees = original
    # What the file does not tell is told once, by a folder that says all.
    edm = tmp_path / "edm"
    jcm.save(jcm.load(path, image_size=16), edm)
    taught = config("cifar10_cd", teacher=str(edm), **{"train.num_steps": 1})
    train_lib.train(taught, tmp_path / "cd")
    _same(states[0].params, trees["params_ema"])
    begun = config("cifar10_ct", **{"init.model": str(edm), "train.num_steps": 1})
    train_lib.train(begun, tmp_path / "ct")
    assert states[1].step == 0
    for part in (states[1].params, states[1].target_params):
        _same(part, trees["params_ema"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init.model": "nothing"}, "nothing is not the workdir of a run"),
        (
            {"init.model": "PATH"},
            "config.init.model=.* another network, with image_size=32 and not 16",
        ),
        (
            {"init.model": "PATH", "init.state": True, "model.nf": 8},
            "checkpoint_2: tensor '.*' of shape .* has no place in this network",
        ),
        (
            {"init.model": "PATH", "init.state": True, "model.name": "adm"},
            "it is of an NCSN.*: set config.model.name=ncsnpp",
        ),
        (
            {"init.model": "FOLDER", "init.state": True},
            "folder has weights but no optimiser: begin anew .* config.init.state=Fal",
        ),
        ({"teacher": "PATH", "method": "cd"}, "config.teacher=.*with image_size=32"),
    ],
)
def test_what_does_not_fit_is_refused(config, original, tmp_path, changes, message):
    path, _ = original
    folder = tmp_path / "folder"
    jcm.save(jcm.load(path, image_size=16), folder)
    places = {"PATH": str(path), "FOLDER": str(folder)}
    given = {name: places.get(value, value) for name, value in changes.items()}
    if given.get("model.name") == "adm":
        given |= {"model.nf": 32, "model.adm.head_channels": 16}
    with pytest.raises(JcmError, match=message):
        train_lib.train(config("cifar10_ct", **given), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists() or not any(
        (tmp_path / "run" / "checkpoints").iterdir()
    )
