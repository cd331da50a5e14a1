"""Tests of whole runs on the digits: their files, resuming, and how they end."""

import gc
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import jcm
from jcm.commands import evaluate as evaluate_lib
from jcm.commands import sample as sample_lib
from jcm.commands import train as train_lib
from jcm.commands.benchmark import speed
from jcm.model.loading import load
from jcm.run import checkpoints
from jcm.run import state as state_lib
from jcm.runtime import logs
from jcm.runtime.errors import JcmError
from jcm.training.log import TrainLog

# If a checkpoint cannot be read, orbax abandons the tasks that read its other parts.
# Python warns about them when it collects them.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True, scope="module")
def _collect():
    yield
    gc.collect()


def _weights(workdir, part="params"):
    return jax.tree.leaves(jax.tree.map(np.asarray, load(workdir, ema=part).params))


def trained_for(model):
    config = model.config
    return config.train.num_steps, config.train.batch_size, config.optim.learning_rate


def _assert_same_run(one, other):
    for part in ("params", "target_params", ""):
        for a, b in zip(_weights(one, part), _weights(other, part), strict=True):
            np.testing.assert_array_equal(a, b)


def _metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_leaves_checkpoints_metrics_and_pictures(student):
    config, workdir = student
    lines = _metrics(workdir)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert lines[-1]["num_scales"] == config.loss.num_scales
    assert lines[-1]["target_ema"] == pytest.approx(config.loss.target_ema)
    assert lines[-1]["kimg"] == pytest.approx(8 * 16 / 1000)
    assert {"loss", "grad_norm", "update_norm", "param_norm"} <= lines[-1].keys()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["4", "8"]
    assert len(list((workdir / "samples").glob("step_*.png"))) == 2
    assert list(workdir.glob("events.*"))


def test_a_killed_run_resumes_bit_for_bit(tiny, student, tmp_path, monkeypatch):
    config, workdir = student
    # A checkpoint between two entries of the log holds what has been summed up.
    config = config.copy_and_resolve_references()
    config.train.checkpoint_every = 3

    class Kill(BaseException):
        pass

    def kill_at_step_6(self, step, *rest):
        if step == 6:
            raise Kill
        return add(self, step, *rest)

    add = TrainLog.add
    with monkeypatch.context() as patch:
        patch.setattr(TrainLog, "add", kill_at_step_6)
        with pytest.raises(Kill):
            train_lib.train(config, tmp_path)
    assert [line["step"] for line in _metrics(tmp_path)] == [2, 4]
    train_lib.train(config, tmp_path)
    _assert_same_run(tmp_path, workdir)
    ours, theirs = _metrics(tmp_path), _metrics(workdir)
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    # A third start finds nothing to do.
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    train_lib.train(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before


def test_the_student_starts_with_the_weights_of_its_teacher(
    tiny, teacher, tmp_path, monkeypatch
):
    begun = []
    create = state_lib.create

    def record(params, *args, **kwargs):
        begun.append(params)
        return create(params, *args, **kwargs)

    monkeypatch.setattr(state_lib, "create", record)
    config = tiny(
        "digits_cd",
        **{
            "teachers.diffusion": str(teacher),
            "optim.learning_rate": 0.0,
            "train.num_steps": 1,
        },
    )
    train_lib.train(config, tmp_path)
    assert begun
    for a, b in zip(_weights(tmp_path), _weights(teacher, ""), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_student_with_classes_and_its_teacher_in_one_run(tiny, tmp_path, caplog):
    config = tiny(
        "digits_cd",
        **{
            "model.class_conditional": True,
            "train.num_steps": 2,
            "train.accumulate": 2,
            "teacher_train.num_steps": 4,
            "teacher_train.learning_rate": 3e-3,
            "seed": 3,
        },
    )
    assert config.teachers.diffusion == "configs/digits_edm.py:smoke"
    with logs.shown():
        train_lib.train(config, tmp_path)
    said = caplog.messages
    teacher = load(tmp_path / "teachers" / "diffusion")
    assert teacher.kind == "diffusion"
    # The network and the seed are the student's, the optimiser is the teacher's own.
    assert teacher.config.model.nf == config.model.nf
    assert teacher.config.seed == 3
    assert teacher.config.optim.warmup_kimg == 5.0
    assert (teacher.step, trained_for(teacher)) == (4, (4, 16, 3e-3))
    assert trained_for(jcm.load(tmp_path)) == (2, 16, 1e-3)
    first = (
        "the teacher configs/digits_edm.py:smoke is trained first, for 4 steps of 16"
        f" images (0.064 kimg), in {tmp_path}/teachers/diffusion; then the student, for"
        " 2 steps of 16 images (0.032 kimg). The fields of config.teacher_train change"
        " the training of the teacher"
    )
    # Each run says what it will not reach, before it compiles.
    before = said[: said.index("compiling the training step")]
    short = [text for text in before if "the run" in text and text != first]
    assert first in before and [text.split(" ")[1:4] for text in short] == [
        ["of", "the", "average"],
        ["of", "the", "target"],
        ["learning", "rate", "rises"],
        ["of", "the", "average"],
    ]
    assert "Set --config.teacher_train.warmup_kimg=0.0064" in short[2]
    # The table of parameters is in a file.
    count = sum(leaf.size for leaf in jax.tree.leaves(teacher.params))
    line = f"the network has {count:,} parameters, listed in parameters.txt"
    assert said.count(line) == 2, said
    assert f"Total: {count:,}" in (tmp_path / "parameters.txt").read_text()
    assert not [text for text in said if "\n" in text]
    trained = jcm.load(tmp_path)
    assert trained.class_names == tuple("0123456789")
    assert trained.sample(3, labels=[7]).shape == (3, 8, 8, 1)
    by_name, by_number = (trained.sample(2, labels=[n]) for n in ("7", 7))
    np.testing.assert_array_equal(by_name, by_number)
    with pytest.raises(JcmError, match="0 to 9"):
        trained.sample(3, labels=[10])
    with pytest.raises(JcmError, match="label 'cat' is unknown: the classes are 0, 1"):
        trained.sample(3, labels=["cat"])
    given = np.zeros((2, 8, 8, 1), np.float32), np.ones(2), np.array([3, 4])
    inside = jax.jit(trained.denoise)(*given)
    np.testing.assert_allclose(inside, trained.denoise(*given), atol=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run(tiny, teacher, tmp_path):
    config = tiny("digits_edm", **{"train.checkpoint_every": 1})
    with config.unlocked():
        config.optim.learning_rate = 1e12
        config.optim.warmup_kimg = 0.0
    with pytest.raises(JcmError, match=r"^step \d: loss .*last checkpoint"):
        train_lib.train(config, tmp_path)
    kept = checkpoints.Checkpoints(tmp_path)
    assert kept.latest_step is not None
    assert all(np.isfinite(leaf).all() for leaf in _weights(tmp_path))


def test_another_config_in_the_workdir_is_refused(tiny, student):
    _, workdir = student
    config = tiny("digits_cd", **{"loss.huber_c": 0.5})
    before = (workdir / "run.json").read_text()
    with pytest.raises(JcmError, match=r"config\.loss\.huber_c=0\.03, not 0\.5"):
        train_lib.train(config, workdir)
    assert (workdir / "run.json").read_text() == before


def test_another_teacher_in_the_same_place_is_refused(student, tmp_path):
    config, workdir = student
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    record = json.loads((workdir / "run.json").read_text())
    assert len(record["teacher_hashes"]["diffusion"]) == 16
    record["teacher_hashes"]["diffusion"] = "0" * 16
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        JcmError, match="another teacher.*have changed since the run started"
    ):
        train_lib.train(config, tmp_path / "run")


def test_a_run_without_checkpoints_may_start_again_with_another_config(
    tiny, teacher, tmp_path
):
    config = tiny(
        "digits_cd", **{"teachers.diffusion": "/nowhere", "train.num_steps": 1}
    )
    with pytest.raises(JcmError, match="there is no /nowhere: name a workdir"):
        train_lib.train(config, tmp_path)
    with config.unlocked():
        config.teachers.diffusion = str(teacher)
        config.data.flip = True
    train_lib.train(config, tmp_path)
    assert load(tmp_path).config.data.flip


def test_a_damaged_checkpoint_is_named_and_set_aside(
    tiny, student, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "_RETRY_SECONDS", 0)
    config, workdir = student
    shutil.copytree(workdir, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "8"
    # These files hold the arrays, not the metadata.
    for file in (newest / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(JcmError, match="checkpoints/8.*use an earlier step"):
        load(tmp_path / "run", ema="params")
    assert newest.exists()
    # This holds even for the last checkpoint of a run that was complete.
    train_lib.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "damaged" / "8").exists()
    _assert_same_run(tmp_path / "run", workdir)


def test_a_checkpoint_of_another_network_is_refused(tiny, student, teacher, tmp_path):
    _, workdir = student
    shutil.copytree(workdir, tmp_path / "run")
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["model"]["nf"] = 16
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(JcmError, match="cannot read"):
        load(tmp_path / "run")
    config = tiny("digits_cd", **{"teachers.diffusion": str(teacher), "model.nf": 16})
    with pytest.raises(JcmError, match="another network"):
        train_lib.train(config, tmp_path / "other")


def test_folders_of_other_programs_raise(tiny, tmp_path):
    with pytest.raises(JcmError, match=r"no run\.json"):
        load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(JcmError, match=r"run\.json is damaged"):
        load(tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(JcmError, match="another program"):
        train_lib.train(tiny("digits_edm"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 12}, "batch_size=12 must be a multiple"),
        ({"train.accumulate": 3}, "accumulate"),
        ({"mesh.fsdp": 3}, "mesh.fsdp=3 must divide"),
        ({"teachers.diffusion": ""}, "needs a teacher"),
        ({"teachers.diffusion": "/nowhere"}, "there is no /nowhere: name a workdir"),
        ({"method": "gan"}, "config.method='gan'"),
        ({"loss.metric": "lpips", "weights": "/nowhere"}, "vgg16-397923af.pth is miss"),
        ({"optim.name": "sgd"}, "config.optim.name='sgd'"),
        ({"loss.scales": "linear"}, "config.loss.scales"),
        ({"data.image_size": 16}, "8x8"),
        ({"model.ch_mult": (1, 1, 1, 1, 1)}, "is not divisible by 16"),
        ({"sample.labels": (1,)}, "unconditional"),
        ({"sample.sigmas": (1.0, 80.0)}, "must descend"),
        ({"sample.sigmas": (80.0, float("nan"))}, "must be above 0"),
        ({"sample.ema": "0.5"}, "ema='0.5' is unknown"),
        ({"init.model": "/nowhere"}, "config.init.model: there is no /nowhere: name"),
        # The teacher is evaluated after the training.
        ({"sample.solver": "hun"}, "solver='hun'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    tiny, tmp_path, changes, message
):
    with pytest.raises(JcmError, match=message):
        train_lib.train(tiny("digits_cd", **changes), tmp_path / "run")
    # The teacher is looked up after the workdir was claimed.
    made = {path.name for path in (tmp_path / "run").glob("**/*")}
    claimed = {"run.json", "checkpoints", ".lock"}
    assert made <= (claimed if "teachers.diffusion" in changes else set())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.scores": ("fidd",)}, "'fidd' is unknown"),
        ({"eval.scores": ("fid",), "weights": "/nowhere"}, "6726825d.pth is missing"),
        (
            {"eval.scores": ("fd_efficientnet_lite0",), "eval.num_images": 320},
            "fd_efficientnet_lite0 needs at least 321 images",
        ),
        (
            {"eval.scores": ("fid",), "eval.reference": "/nowhere.npz"},
            "eval.reference=/nowhere.npz does not exist",
        ),
    ],
)
def test_impossible_scores_are_refused_before_training(
    tiny, tmp_path, changes, message
):
    """By the command, which scores afterwards, and by scoring during training."""
    with pytest.raises(JcmError, match=message):
        evaluate_lib.check(tiny("digits_cd", **changes))
    config = tiny("digits_cd", **changes, **{"eval.every_kimg": 1})
    with pytest.raises(JcmError, match=message):
        train_lib.train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


# --- loading, sampling, evaluating


def test_denoise_checks_its_arguments_and_works_inside_jit(student):
    trained = jcm.load(student[1])
    x, sigma = np.zeros((2, 8, 8, 1), np.float32), np.ones(2, np.float32)
    inside = jax.jit(trained.denoise)(x, sigma)
    np.testing.assert_allclose(inside, trained.denoise(x, sigma), atol=1e-5)
    with pytest.raises(
        JcmError, match=r"takes \(n, 8, 8, 1\), and one sigma or \(n,\)"
    ):
        trained.denoise(x[:, :7], sigma)
    with pytest.raises(JcmError, match="above 0"):
        trained.denoise(x, sigma * 0)


def test_loaded_model_is_the_identity_at_sigma_min(student):
    trained = jcm.load(student[1])
    assert trained.kind == "consistency"
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    same = trained.denoise(x, np.full(4, 0.002))
    np.testing.assert_array_equal(same, x)
    other = trained.denoise(x, np.full(4, 1.0))
    assert np.abs(np.asarray(other - x)).max() > 0.1


def test_samples_repeat_and_do_not_depend_on_their_number(student):
    trained = jcm.load(student[1])
    few = trained.sample(3, seed=5, sigmas=(80.0, 1.2345))
    many = trained.sample(20, seed=jax.random.key(5), sigmas=(80.0, 1.2345))
    np.testing.assert_allclose(few, many[:3], atol=2e-5)
    assert few.min() >= -1
    assert few.max() <= 1
    with pytest.raises(JcmError, match="must descend"):
        trained.sample(3, seed=5, sigmas=(1.0, 2.0))


def test_weights_are_chosen_by_name(student):
    config, workdir = student
    averaged = _weights(workdir, config.train.averages[0])
    assert any(
        (a != b).any()
        for a, b in zip(averaged, _weights(workdir, "params"), strict=True)
    )
    with pytest.raises(JcmError, match="ema='0.5'"):
        load(workdir, ema="0.5")


def test_sample_mode_writes_files(student, tmp_path):
    config, workdir = student
    shutil.copytree(workdir, tmp_path / "run")
    made = tmp_path / "run" / "samples"
    sample_lib.sample(config, tmp_path / "run")
    (path,) = made.glob("step_8_seed_0_2_steps_16_images_*.npz")
    with np.load(path) as file:
        pixels = file["arr_0"]
    assert pixels.shape == (16, 8, 8, 1)
    assert pixels.dtype == np.uint8
    with pytest.raises(
        JcmError, match="not use config.sample.steps for a consistency m"
    ):
        sample_lib.sample(config, workdir, ("sample.seed", "sample.steps"))
    expected = jcm.to_uint8(jcm.load(workdir).sample(16))
    np.testing.assert_array_equal(pixels, expected)
    # Every setting that changes the samples has its own files, which say what it is.
    before = path.read_bytes()
    for field, value in (
        ("sample.sigmas", (80.0, 0.3)),
        ("sample.num_images", 8),
        ("sample.ema", "params"),
        ("sample.seed", 1),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        sample_lib.sample(other, tmp_path / "run")
    assert len(list(made.glob("step_8_seed_*.npz"))) == 5
    assert path.read_bytes() == before
    found = [json.loads(each.read_text()) for each in made.glob("*.json")]
    assert [80.0, 0.3] in [each["sigmas"] for each in found]
    sample_lib.sample(config, tmp_path / "run")  # the same again
    assert len(list(made.glob("step_8_seed_*.png"))) == 5


def test_a_model_loads_where_there_are_fewer_devices(student):
    program = (
        "import jax, jcm, sys; model = jcm.load(sys.argv[1]);"
        "print(jax.device_count(), sum(p.size for p in jax.tree.leaves(model.params)))"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(student[1])],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    parameters = sum(leaf.size for leaf in _weights(student[1]))
    assert done.stdout.split() == ["1", str(parameters)]


def test_benchmark_measures(tiny, tmp_path):
    folder = tmp_path / "new" / "profile"
    found = speed.measure(
        tiny("digits_cd"), repeats=1, sample_batch=8, profile=str(folder)
    )
    assert "HloModule" in (folder / "step.hlo").read_text()
    assert list(folder.rglob("*.xplane.pb"))
    for name in ("compile_seconds", "train_flops_per_image", "peak_memory_gib"):
        assert found[name] > 0
    step = found["train_step"]
    assert found["train_images_per_second"] == pytest.approx(16 / step["seconds"])
    assert step["spread"] == 0 and step["cores_in_use"] > 0
    assert found["share_of_convolution_speed"] > 0
    assert set(found["sampling"]) == {"1 step", "2 steps"}
    assert found["sampling"]["1 step"]["images_per_second"] > 0


def test_a_wrong_batch_size_of_the_teacher_is_an_error_about_the_teacher(
    tiny, tmp_path
):
    mine = tmp_path / "odd.py"
    mine.write_text(
        "from jcm import config as c\n"
        "def get_config(mode=''):\n"
        "    config = c.load('configs/digits_edm.py:smoke')\n"
        "    with config.unlocked():\n"
        "        config.train.batch_size = 12\n"
        "    return config\n"
    )
    config = tiny("digits_cd", **{"teachers.diffusion": str(mine)})
    with pytest.raises(JcmError, match="the teacher .*odd.py: .*batch_size=12"):
        train_lib.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
