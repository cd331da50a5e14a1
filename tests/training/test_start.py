"""Tests of how a run starts: teachers, weights or states of other models."""

import golden
import jax
import numpy as np
import pytest
from flax import serialization

import jcm
from jcm.commands import train as train_lib
from jcm.model import build
from jcm.model.loading import load
from jcm.pretrained import flax_file, openai_jcm
from jcm.run.checkpoints import Checkpoints
from jcm.runtime.errors import JcmError
from jcm.training import program, start


def _file(path, network, trees, step):
    """Writes a checkpoint of the original code from our trees."""
    names = openai_jcm._module_names(network.arch)

    def theirs(params):
        tree = {}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
            *module, last = (key.key for key in keys)
            parts = names["/".join(module)].split("/")
            layer = parts[-1].rpartition("_")[0]
            last = openai_jcm._LEAVES.get(layer, {}).get(last, last)
            parts = parts if last == "frequencies" else [*parts, last]
            branch = tree
            for part in parts[:-1]:
                branch = branch.setdefault(part, {})
            branch[parts[-1]] = np.asarray(leaf)
        return tree

    state = {
        "step": np.int32(step),
        "lr": np.float32(4e-4),
        **{
            part: theirs(trees[part])
            for part in ("params", "target_params", "params_ema")
            if part in trees
        },
        "model_state": {},
        "opt_state": {
            "0": {
                "count": np.int32(step),
                "mu": theirs(trees["mu"]),
                "nu": theirs(trees["nu"]),
            },
            "1": {},
            "2": {},
        },
    }
    path.write_bytes(serialization.to_bytes(state))
    return path


def _drawn(network, *parts):
    """Returns trees of random numbers; those of nu are squares."""
    trees = {}
    for seed, part in enumerate(parts):
        random = np.random.RandomState(seed)
        tree = jax.tree.map(
            lambda leaf, random=random: (
                0.05 * random.standard_normal(leaf.shape).astype(np.float32)
            ),
            network.shapes,
        )
        trees[part] = jax.tree.map(np.square, tree) if part == "nu" else tree
    return trees


_PARTS = ("params", "target_params", "params_ema", "mu", "nu")


def _first(config):
    """Returns the state with which a run of a config starts."""
    teachers = {
        name: teacher.denoiser
        for name, teacher in start.find_teachers(config, 0).items()
    }
    made = program.create(config, 0, teachers)
    shapes = made.network.shapes
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return start.first_state(config, made.network, made.new_state, made.state, zeros)


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def _moments(state):
    return next(part for part in state.opt_state if hasattr(part, "mu"))


@pytest.mark.parametrize("with_target", [True, False])
def test_the_whole_state_of_the_original_is_read(tiny, tmp_path, with_target):
    settings = {
        "init.model": str(tmp_path / "checkpoint_2"),
        "init.state": True,
        "train.num_steps": 30_000,
        "train.averages": ("0.9999", "0.99"),
    }
    config = tiny("cifar10_ct", **settings)
    trees = _drawn(build.network(config, 0), *_PARTS)
    if not with_target:
        del trees["target_params"]  # The original then uses the student itself.
    _file(tmp_path / "checkpoint_2", build.network(config, 0), trees, 20_000)
    state = _first(config)
    assert state.step == 20_000 and state.step.dtype == np.int32
    _same(state.params, trees["params"])
    _same(state.target_params, trees.get("target_params", trees["params"]))
    assert set(state.ema_params) == {"0.9999", "0.99"}
    for average in state.ema_params.values():
        _same(average, trees["params_ema"])
    moments = _moments(state)
    assert moments.count == 20_000
    _same(moments.mu, trees["mu"])
    _same(moments.nu, trees["nu"])
    with config.unlocked():
        config.train.num_steps = 20_000
    with pytest.raises(
        JcmError, match="has done 20000 steps: raise config.train.num_s"
    ):
        _first(config)


def test_a_training_of_the_original_resumes(tiny):
    """The original has made ten steps. The moments continue with the eleventh."""
    path = golden.path("checkpoints_steps_cd/checkpoint_1")
    small = golden.CONFIG
    names = ("nf", "ch_mult", "num_res_blocks", "attn_resolutions")
    settings = {f"model.{name}": small[name] for name in names}
    settings |= {"init.model": str(path), "init.state": True, "data.image_size": 16}
    settings |= {"train.num_steps": 20_011}
    state = _first(tiny("cifar10_cd", **settings))
    raw = flax_file.load(path, ("step", "params", "params_ema", "opt_state"))
    assert state.step == raw["step"]
    for ours, theirs in (
        (state.params, raw["params"]),
        (state.ema_params["0.9999"], raw["params_ema"]),
        (_moments(state).mu, raw["opt_state"]["0"]["mu"]),
        (_moments(state).nu, raw["opt_state"]["0"]["nu"]),
    ):
        _same(ours, golden.from_original(flax_file.flatten(theirs)))
    assert _moments(state).count == raw["opt_state"]["0"]["count"]


def test_a_resumed_training_runs_and_resumes_again(tiny, tmp_path):
    config = tiny("digits_ct", **{"train.checkpoint_every": 0, "train.sample_every": 0})
    network = build.network(config, 10)
    _file(tmp_path / "file", network, _drawn(network, *_PARTS), 20_000)
    with config.unlocked():
        config.init.model, config.init.state = str(tmp_path / "file"), True
        config.train.num_steps = 20_002
    train_lib.train(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step == 20_002
    # A run of this project resumes in the same way, with other settings.
    again = config.copy_and_resolve_references()
    with again.unlocked():
        again.init.model = str(tmp_path / "run")
        again.train.num_steps = 20_003
    state = _first(again)
    assert state.step == 20_002 and _moments(state).count == 20_002
    _same(state.params, load(tmp_path / "run", ema="params").params)
    for field, value, theirs in (
        ("optim.name", "radam", "'adam', and not 'radam'"),
        ("noise.sigma_data", 1.0, "0.5, and not 1.0"),
        ("train.averages", ("0.9",), r"\['0.998'\], and not \['0.9'\]"),
    ):
        wrong = again.copy_and_resolve_references()
        wrong.update_from_flattened_dict({field: value})
        with pytest.raises(JcmError, match=f"trained with config.{field}={theirs}"):
            _first(wrong)


def test_weights_of_others_initialise_and_teach(tiny, teacher, tmp_path):
    folder, theirs = tmp_path / "folder", load(teacher)
    jcm.save(theirs, folder)
    config = tiny("digits_ct", **{"init.model": str(folder)})
    state = _first(config)
    assert state.step == 0
    for part in (state.params, state.target_params, *state.ema_params.values()):
        _same(part, theirs.params)
    config = tiny("digits_cd", **{"teachers.diffusion": str(folder)})
    _same(start.find_teachers(config, 10)["diffusion"].load(), theirs.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"init.model": "FOLDER", "noise.sigma_data": 1.0},
            "config.init.model=.* is for other noise levels, with sigma_data=0.5",
        ),
        ({"init.model": "nothing"}, "config.init.model: there is no nothing: name a"),
        (
            {"init.model": "FOLDER", "model.nf": 16},
            "config.init.model=.* another network, with nf=8 and not 16",
        ),
        (
            {"init.model": "FILE", "init.state": True, "model.nf": 16},
            "file: tensor '.*' of shape .* has no place in this network",
        ),
        (
            {
                "init.model": "FILE",
                "init.state": True,
                "model.name": "adm",
                "model.nf": 32,
            },
            "file holds an NCSN.*: set config.model.name=ncsnpp",
        ),
        (
            {"init.model": "FOLDER", "init.state": True},
            "folder has weights but no optimiser state: start a new .*init.state=Fal",
        ),
    ],
)
def test_weights_that_do_not_fit_raise(tiny, teacher, tmp_path, changes, message):
    network = build.network(tiny("digits_ct"), 10)
    places = {
        "FILE": str(_file(tmp_path / "file", network, _drawn(network, *_PARTS), 9)),
        "FOLDER": str(tmp_path / "folder"),
    }
    jcm.save(load(teacher), tmp_path / "folder")
    given = {name: places.get(value, value) for name, value in changes.items()}
    with pytest.raises(JcmError, match=message):
        _first(tiny("digits_ct", **given))


def test_a_model_that_cannot_teach_raises(tiny, student, teacher, tmp_path):
    jcm.save(load(student[1]), tmp_path / "student")
    for source, changes, message in (
        (tmp_path / "student", {}, "student is a consistency model, and not a diff"),
        (teacher, {"noise.sigma_max": 40.0}, "with sigma_max=80.0 and not 40.0: set"),
        ("nothing", {}, "config.teachers.diffusion: there is no nothing: name"),
        ("openai/gan", {}, "'openai/gan' is no published model"),
        ("", {}, "needs a teacher: set config.teachers.diffusion"),
    ):
        config = tiny("digits_cd", **{"teachers.diffusion": str(source)}, **changes)
        with pytest.raises(JcmError, match=message):
            start.find_teachers(config, 10)
