"""Tests of numbers of NumPy and JAX as arguments, and of paths with a tilde."""

import json
import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from paths import ROOT

import jcm
from jcm.model import build
from jcm.model.labels import image_labels, labels_of_images
from jcm.runtime import cache
from jcm.runtime.arguments import number, numbers, whole
from jcm.runtime.arrays import as_key
from jcm.runtime.paths import expanded
from jcm.training import start


@pytest.fixture(scope="module")
def model(student):
    return jcm.load(student[1], batch_size=8)


# --- numbers

_WHOLE = [np.int64(3), np.uint8(3), np.array(3), jnp.int32(3)]
_NOT_WHOLE = [3.0, np.float32(3), True, np.True_, "3", None, [3], jnp.ones(2, int)]
_NUMBER = [0.5, np.float64(0.5), np.float32(0.5), np.array(0.5), jnp.float32(0.5)]
_NO_NUMBER = ["0.5", True, None, [0.5, [1]], {0.5: 1}, jax.random.key(0)]


@pytest.mark.parametrize("value", _WHOLE, ids=repr)
def test_whole_numbers_of_all_libraries_are_the_same(model, value):
    assert type(whole("count", value)) is int and whole("count", value) == 3
    np.testing.assert_array_equal(
        jax.random.key_data(as_key(value)), jax.random.key_data(jax.random.key(3))
    )
    assert model.sample(value).shape == (3, 8, 8, 1)
    want = model.sample(1, seed=3, steps=3)
    np.testing.assert_array_equal(model.sample(1, seed=value, steps=value), want)
    edited = model.edit.variations(want, variants=value, first=value)
    np.testing.assert_array_equal(
        edited, model.edit.variations(want, 2, variants=6)[3:]
    )


@pytest.mark.parametrize("value", _NOT_WHOLE, ids=repr)
def test_what_is_no_whole_number_is_one_line(model, monkeypatch, value):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    zeros = np.zeros((1, 8, 8, 1), np.float32)
    calls = {
        "count": lambda: model.sample(value),
        "seed": lambda: model.sample(1, seed=value),
        "variants": lambda: model.edit.variations(zeros, variants=value),
        "first": lambda: model.edit.variations(zeros, first=value),
        "step": lambda: jcm.load(model.workdir, step=value),
    }
    if value is not None:
        calls |= {
            "steps": lambda: model.sample(1, steps=value),
            "batch_size": lambda: jcm.load(model.workdir, batch_size=value),
            "image_size": lambda: jcm.load(model.workdir, image_size=value),
            "num_images": lambda: jcm.evaluate(model, num_images=value),
            "columns": lambda: jcm.save_png(zeros, "x.png", columns=value),
            "scale": lambda: jcm.save_png(zeros, "x.png", scale=value),
            "size": lambda: jcm.open_pictures("x.png", model, size=value),
        }
    for name, call in calls.items():
        with pytest.raises(jcm.JcmError, match=f"^{name}=.* must be a whole number"):
            call()


def test_numbers_outside_of_their_bounds_are_one_line():
    assert whole("n", 3, 3, 3) == 3 and number("n", 3, 3, 3) == 3.0
    for check, value, line in [
        (whole, 2, "n=2 must be at least 3"),
        (whole, 10**5000, "n=a huge int must be at most 4"),
        (number, 2.5, "n=2.5 must be at least 3"),
        (number, float("nan"), "n=nan must be at least 3"),
        (number, float("inf"), "n=inf must be at most 4"),
    ]:
        with pytest.raises(jcm.JcmError, match=f"^{line}$"):
            check("n", value, 3, 4)


@pytest.mark.parametrize("value", _NUMBER, ids=repr)
def test_numbers_of_all_libraries_are_the_same(model, value):
    assert number("sigma", value) == 0.5
    x = np.full((1, 8, 8, 1), -0.5, np.float32)
    np.testing.assert_array_equal(model.denoise(x, value), model.denoise(x, 0.5))
    np.testing.assert_array_equal(
        model.edit.denoise(x, value), model.edit.denoise(x, 0.5)
    )
    assert build.levels(value) == (0.5,) == build.levels([value])
    assert build.levels((80, value)) == (80.0, 0.5)


@pytest.mark.parametrize("value", _NO_NUMBER, ids=repr)
def test_what_is_no_number_is_one_line(model, monkeypatch, value):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x = np.full((1, 8, 8, 1), -0.5, np.float32)
    calls = [
        lambda: numbers("sigma", value),
        lambda: model.denoise(x, value),
        lambda: model.edit.variations(x, value),
    ]
    if value is not None:
        calls += [
            lambda: model.edit.denoise(x, value),
            lambda: model.sample(1, sigmas=value),
        ]
    for call in calls:
        with pytest.raises(jcm.JcmError, match="^sigmas?=.* must be a number, or sev"):
            call()
    with pytest.raises(jcm.JcmError, match="must be a single number"):
        model.edit.variations(x, [0.5, 0.4])


@pytest.mark.parametrize("ema", [0.99, np.float32(0.99), jnp.float32(0.99), "0.99"])
def test_an_average_may_be_named_by_its_rate(model, ema):
    found = jcm.load(model.workdir, ema=ema, step=np.int64(8), batch_size=jnp.int32(8))
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
    assert found.step == 8


@pytest.mark.parametrize(
    ("ema", "message"),
    [
        (0.9, "ema='0.9' is unknown: use one of params, target_params, 0.99"),
        (None, "ema=None must be a string or a number"),
        (["0.99"], r"ema=\['0.99'\] must be a string or a number"),
        (True, "ema=True must be a string or a number"),
    ],
)
def test_another_average_is_one_line(model, monkeypatch, ema, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(jcm.JcmError, match=message):
        jcm.load(model.workdir, ema=ema)


class _Classes:
    """As much of a denoiser with ten classes as labels need."""

    num_classes = 10

    def as_labels(self, labels, count):
        from jcm.diffusion.denoiser import Denoiser

        return Denoiser.as_labels(self, labels, count)


@pytest.mark.parametrize(
    "labels",
    [
        *(np.int64(3), np.array(3), jnp.int32(3), [3], (np.int8(3),), np.array([3])),
        *("c3", np.str_("c3"), np.array(["c3"]), [jnp.int32(3)]),
    ],
    ids=repr,
)
def test_labels_of_all_libraries_are_the_same(monkeypatch, labels):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    names = [f"c{i}" for i in range(10)]
    found = image_labels(None, 2, _Classes(), names, labels)
    np.testing.assert_array_equal(found, [3, 3])
    found = labels_of_images(labels, 1, _Classes(), names)
    np.testing.assert_array_equal(found, [3])


@pytest.mark.parametrize("labels", [3.0, np.float64(3), True, [1, None], [[3]]])
def test_what_is_no_label_is_one_line(monkeypatch, labels):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(jcm.JcmError, match="^label .* is not a class: pass its name"):
        image_labels(None, 2, _Classes(), [], labels)


@pytest.mark.parametrize(
    ("field", "given", "value"),
    [
        ("train.num_steps", np.int64(5), 5),
        ("train.num_steps", jnp.int32(5), 5),
        ("optim.learning_rate", np.float32(0.5), 0.5),
        ("data.flip", np.True_, True),
        ("data.path", pathlib.Path("x"), "x"),
        ("sample.sigmas", np.array([80.0, 1.0]), (80.0, 1.0)),
        ("sample.sigmas", [80, jnp.float32(1)], (80, 1.0)),
    ],
)
def test_a_config_takes_values_of_all_libraries(field, given, value):
    section, name = field.split(".")
    for change in (
        lambda config: setattr(config[section], name, given),
        lambda config: config.update_from_flattened_dict({field: given}),
    ):
        config = jcm.config.load("configs/digits_cd.py")
        change(config)
        found = config[section][name]
        assert found == value and type(found) is type(value)
        jcm.config.check(config)
        json.dumps(config.to_dict())


def test_scores_take_numbers_of_all_libraries(model, monkeypatch):
    asked = {}

    class Scorer:
        def __init__(self, config, *_):
            asked["num_images"] = config.eval.num_images

        def __call__(self, subject, schedule, seed):
            asked.update(seed=seed, sigmas=schedule.sigmas)
            return {}

    monkeypatch.setattr("jcm.commands.api.Scorer", Scorer)
    numbers = {
        "num_images": np.int64(80),
        "seed": jnp.int32(3),
        "sigmas": np.float32(9),
    }
    for names in ("classifier", ["classifier"], np.array(["classifier"])):
        jcm.evaluate(model, scores=names, **numbers)
        assert asked == {"num_images": 80, "seed": 3, "sigmas": (9.0,)}
        assert type(asked["num_images"]) is type(asked["seed"]) is int
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for wrong in ({"seed": 0.5}, {"seed": jax.random.key(0)}, {"num_images": 80.0}):
        with pytest.raises(jcm.JcmError, match="must be a whole number"):
            jcm.evaluate(model, scores="classifier", **wrong)
    with pytest.raises(jcm.JcmError, match="scores=3 must be names, such as 'fid'"):
        jcm.evaluate(model, scores=3)


# --- paths


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    return tmp_path


def test_every_path_may_begin_with_a_tilde(model, home, tiny, monkeypatch):
    jcm.save(model, "~/model", licence="mit")
    jax.tree.map(
        np.testing.assert_array_equal, jcm.load("~/model").params, model.params
    )
    with pytest.raises(jcm.JcmError, match=f"{home}/model exists already"):
        jcm.save(model, pathlib.Path("~/model"))
    jcm.save_png(model.sample(1), "~/pictures/x.png", scale=1)
    for place in ("~/pictures", "~/pictures/x.png", ["~/pictures/x.png"]):
        assert jcm.open_pictures(place, model).shape == (1, 8, 8, 1)
    (home / "run").symlink_to(model.workdir)
    assert jcm.load("~/run").step == 8
    source = (ROOT / "configs" / "digits_cd.py").read_text()
    (home / "mine.py").write_text(source)
    assert jcm.config.load("~/mine.py:smoke").method == "cd"
    monkeypatch.setenv("JCM_CACHE", "~/cache")
    assert cache.folder("data") == home / "cache" / "data"


def test_a_teacher_may_begin_with_a_tilde(home, tiny, teacher):
    (home / "teacher").symlink_to(teacher)
    config = tiny("digits_cd", **{"teachers.diffusion": "~/teacher"})
    found = start.find_teachers(config, 10)["diffusion"]
    assert found.denoiser.kind == "diffusion"


def test_a_data_set_may_begin_with_a_tilde(home, data_config):
    from folders import of_folder, save

    from jcm import data

    save(home / "pictures" / "a.png")
    with data_config.unlocked():
        data_config.dir = "~/prepared"
    assert len(data.load(of_folder(data_config, "~/pictures"))) == 1
    assert list((home / "prepared").iterdir())


def test_one_function_expands_a_tilde(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for path in (ROOT / "jcm").rglob("*.py"):
        if path.name != "paths.py":
            assert "expanduser" not in path.read_text(), path
    with pytest.raises(jcm.JcmError, match="^~nobody_here/x begins with an unk"):
        expanded("~nobody_here/x")
    with pytest.raises(jcm.JcmError, match="^3 must be a path"):
        expanded(3)


# --- what the name of a model may be


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "openai/diffusers-cd_imagenet64_l2",
            "is a repository of the Hugging Face Hub, from which jcm does not download:"
            " use openai/cd-imagenet64-l2, which has the same weights",
        ),
        ("openai/diffusers-ct_bedroom256", "use openai/ct-bedroom256, which has the s"),
        (
            "openai/cd-cifar10-lpip",
            "no published model: did you mean openai/cd-",
        ),
        ("openai/CD-cifar10-LPIPS", "did you mean openai/cd-cifar10-lpips?"),
        ("openai/gan", "'openai/gan' is no published model: use one of openai/"),
        (
            "google/ddpm-cifar10-32",
            "there is no google/ddpm-cifar10-32: name a workdir, .*; if it is a"
            " repository of the Hugging Face Hub, download it with `hf download"
            " google/ddpm-cifar10-32 --local-dir=FOLDER` and load FOLDER",
        ),
        ("https://huggingface.co/a/b", "is a URL, which jcm.load does not download"),
        ("hf://a/b", "^hf://a/b is a URL"),
        ("my_model", "there is no my_model: name a workdir, .*lpips$"),
    ],
)
def test_a_name_that_is_no_model_says_what_it_is(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(jcm.JcmError, match=message):
        jcm.load(name)
