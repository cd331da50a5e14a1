"""Tests of what stops the leaks of TensorStore."""

import sys

import pytest
import tensorstore

from jcm.run import leaks


@pytest.fixture(autouse=True)
def _stopped():
    leaks.stop_leaks()


@pytest.mark.parametrize(
    "spec",
    [
        {"driver": "file", "path": "/a 'b' é )/"},
        {"driver": "ocdbt", "base": "file:///a/", "config": {"compression": None}},
    ],
)
def test_a_location_is_what_tensorstore_returns(spec):
    spec = tensorstore.KvStore.Spec(spec)
    assert spec.to_json() == leaks._to_json(spec)
    assert spec.to_json() is not spec.to_json()  # the caller may change it
    assert spec.to_json(include_defaults=True)["driver"] == spec.to_json()["driver"]


def test_what_orbax_calls_at_every_save_leaves_nothing_in_memory(tmp_path):
    base = {"driver": "file", "path": f"{tmp_path}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    store.write("key", b"value").result()  # without it there are no counters

    def call():
        for _ in range(100):
            tensorstore.KvStore.Spec(base).to_json()
            tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/")

    call()
    before = sys.getallocatedblocks()
    call()
    assert sys.getallocatedblocks() - before < 100
