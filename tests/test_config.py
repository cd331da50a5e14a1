"""Tests of the configs."""

import json
import operator
import re

import pytest
from paths import ROOT

from jcm import config as config_lib
from jcm import methods
from jcm.diffusion.denoiser import Denoiser
from jcm.diffusion.precond import EDM
from jcm.model import build
from jcm.runtime.errors import JcmError

_CONFIGS = ROOT / "configs"


@pytest.mark.parametrize(
    "path", sorted(_CONFIGS.glob("[a-z]*.py")), ids=lambda p: p.stem
)
@pytest.mark.parametrize("mode", ["", ":smoke"])
def test_every_config_loads_and_survives_a_round_trip_by_json(path, mode):
    config = config_lib.load(f"{path}{mode}")
    again = config_lib.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert config.is_locked
    if mode:
        assert config.train.num_steps <= 10
    with config.unlocked():
        config.weights = "/nowhere"  # Nothing is downloaded.
        # Teacher and student then have the same network, which takes seconds to trace.
        config.model.dropout = 0.0
    network = build.network(config, num_classes=10)
    teachers = {
        name: Denoiser(network, EDM())
        for name in methods.recipe(config.method).teachers
    }
    if config.loss.get("metric") == "lpips":
        with pytest.raises(JcmError, match="vgg16"):
            methods.create(config, network, teachers)
    else:
        methods.create(config, network, teachers)
    config_lib.check(config)
    with pytest.raises(JcmError, match="config.colour is unknown"):
        config_lib.from_dict({"method": "cd", "colour": 1})


@pytest.mark.parametrize("method", methods.NAMES)
def test_every_field_is_explained_and_every_number_has_a_bound(method):
    config = config_lib.base(method)
    known = config_lib.fields(config)
    assert known.keys() == config_lib.flatten(config).keys()
    for name, field in known.items():
        assert field.doc and not field.doc.endswith("."), name
        assert field.types and set(field.types) <= {bool, int, float, str}, name
        if field.is_numeric:
            assert field.bounds, name
        field.check(name, field.default)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train.accumulate", 0),
        ("train.num_steps", 0),
        ("loss.num_scales", 1),
        ("sample.steps", 1),
        ("eval.seeds", ()),
        ("noise.sigma_min", 0.0),
        ("noise.rho", 0.0),
        ("loss.end_scales", 1),
        ("optim.learning_rate", float("nan")),
        ("optim.grad_clip", -1.0),
        ("loss.start_ema", 0.0),
        ("loss.target_ema", 2.0),
        ("model.dropout", 1.0),
        ("sample.sigmas", ()),
        ("data.workers", -1),
        ("model.ncsnpp.fir_kernel", (1.0, -1.0)),
        ("teacher_train.batch_size", 0),
        # A value that is 0, infinite or another number in 32 bits.
        ("noise.sigma_min", 1e-50),
        ("optim.learning_rate", 1e39),
        ("loss.num_scales", 2**31),
        ("sample.num_images", 10**12),
        # A value of another type.
        ("eval.seeds", (0.5,)),
        ("eval.seeds", (3, 3)),
        ("eval.seeds", (2**32,)),
        ("seed", -1),
        ("sample.seed", 2**32),
        ("search.seed", -1),
        ("sample.sigmas", ("80",)),
        ("model.ch_mult", (1.5,)),
        ("model.remat", (True,)),
        ("train.batch_size", True),
        ("sample.labels", (1.5,)),
    ],
)
def test_impossible_values_raise(field, value):
    config = config_lib.base()
    config_lib.check(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(JcmError, match=field.replace("noise.", "")):
        config_lib.check(config)


def test_unknown_fields_in_files_raise(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jcm import config as c\n"
        "def get_config(mode=''):\n"
        "    config = c.base()\n"
        "    config.loss.metrc = 'l2'\n"
        "    return c.finish(config, mode)\n"
    )
    with pytest.raises(JcmError, match="mine.py: .*metrc"):
        config_lib.load(str(file))
    file.write_text("def get_config(:\n")
    with pytest.raises(JcmError, match="SyntaxError"):
        config_lib.load(str(file))
    for wrong in ("nowhere/at/all/digits_cd.py", f"{tmp_path}/configs/digits_cd.py"):
        with pytest.raises(JcmError, match="there is no config"):
            config_lib.find(wrong)
    with pytest.raises(JcmError, match="configs/digits_cd.py"):
        config_lib.find("digits_cd")


def test_a_wrong_name_in_python_is_an_error_of_one_line():
    config = config_lib.base("cd")
    for section, name, message in (
        (config.train, "steps", "unknown field steps: did you mean num_steps?"),
        (config.optim, "lr", "unknown field lr: did you mean learning_rate?"),
        (config, "lr", "unknown field lr: did you mean optim.learning_rate?"),
        (config.mesh, "zz", "unknown field zz: use one of fsdp, fsdp_min_mib, rules"),
    ):
        for use, *value in (
            (getattr,),
            (setattr, 1),
            (operator.getitem,),
            (operator.setitem, 1),
            (lambda section, name: section.update({name: 1}),),
        ):
            for error in (AttributeError, KeyError):
                with pytest.raises(error, match=f"^{re.escape(message)}$"):
                    use(section, name, *value)
        assert name not in section and section.get(name, 7) == 7
        assert getattr(section, name, 7) == 7
    for use in (
        lambda: config["optim.lr"],
        lambda: config.update_from_flattened_dict({"optim.lr": 1}),
    ):
        with pytest.raises(KeyError, match="^unknown field lr: did you mean learning_"):
            use()
    assert config["optim.learning_rate"] == config.optim.learning_rate
    copied = config.copy_and_resolve_references()
    assert copied == config and type(copied.train) is type(config)
    with copied.unlocked():
        copied.train.steps = 3  # as ConfigDict, if it is not locked


def test_fields_of_the_training_of_a_teacher_may_be_left_open():
    config = config_lib.base("cd")
    assert set(config.teacher_train.values()) == {None}
    with pytest.raises(TypeError):
        config.teacher_train.num_steps = "many"
    config.teacher_train.num_steps = 300
    with pytest.raises(
        JcmError, match="teacher_train.num_steps=300 .*: set it to None"
    ):
        config_lib.check(config)
    config.teachers.diffusion = "configs/digits_edm.py"
    config_lib.check(config)
    again = config_lib.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.teacher_train.num_steps == 300
    with again.ignore_type():
        again.teacher_train.learning_rate = (1.0,)
    with pytest.raises(JcmError, match="teacher_train.learning_rate.* be a number"):
        config_lib.check(again)
    assert "teacher_train" not in config_lib.base("ct")
    # The sections that have the fields of most runs are meant.
    with pytest.raises(KeyError, match=r"num_steps: did you mean train.num_steps\?$"):
        config["num_steps"]
