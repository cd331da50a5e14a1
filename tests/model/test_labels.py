"""Tests of class labels, given by number or by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from jcm.model import labels
from jcm.runtime.errors import JcmError

NUMBERS = tuple(map(str, range(1, 13)))


@pytest.mark.parametrize(
    "label", [2, np.int64(2), np.uint8(2), np.array(2), jnp.int32(2)]
)
def test_a_number_is_the_place_of_a_class(label):
    number = labels.label_number(label, ("cat", "dog", "owl"))
    assert number == 2 and type(number) is int


@pytest.mark.parametrize("label", [2.0, np.float32(2), True, None, jnp.ones(2), [2]])
def test_anything_else_is_an_error(label):
    with pytest.raises(JcmError, match="pass its name, or its number") as info:
        labels.label_number(label, ("cat", "dog", "owl"))
    assert "\n" not in str(info.value)


def test_text_is_the_name_of_a_class(caplog):
    assert labels.label_number("2", tuple("0123")) == 2
    assert labels.label_number(2, tuple("0123")) == 2
    assert not caplog.records


def test_a_label_that_can_mean_two_classes_is_reported_once(caplog):
    labels._log_once.cache_clear()
    for _ in range(2):
        assert labels.label_number("2", NUMBERS) == 1
        assert labels.label_number(2, NUMBERS) == 2
    first, second = (record.getMessage() for record in caplog.records)
    assert "'2' is class number 1, named '2', and not number 2, named '3'" in first
    assert "label 2 is class number 2, named '3', and not number 1, nam" in second


@pytest.mark.parametrize("names", ["cafe\u0301", "caf\u00e9"])
@pytest.mark.parametrize("label", ["cafe\u0301", "caf\u00e9"])
def test_names_are_compared_in_one_form_of_unicode(names, label):
    assert labels.label_number(label, ("bar", names)) == 1


@pytest.mark.parametrize(
    ("label", "remedy"),
    [
        ("dgo", "did you mean dog"),
        ("1", "pass 1 as a number, without quotes"),
        ("7", "the classes are cat, dog"),
        ("cat", "several classes are named 'cat'"),
    ],
)
def test_an_unknown_name_is_an_error_with_a_remedy(label, remedy):
    names = ("cat", "dog", "cat") if label == "cat" else ("cat", "dog")
    with pytest.raises(JcmError, match=remedy):
        labels.label_number(label, names)


def test_leading_zeros_are_named():
    names = ("00", "01", "007", "1")
    for label, meant in (("7", "007"), ("0", "00"), ("001", "01 or 1")):
        with pytest.raises(JcmError, match=f"unknown: did you mean {meant}[?]"):
            labels.label_number(label, names)


def test_classes_of_imagenet_have_two_names():
    names = ("tench", "goldfish")
    assert labels.label_number("n01443537", names) == 1
