"""Tests of a workdir in an object store, on a server with the protocol of Google."""

import copy
import json
import os
import pathlib
import shutil
import threading
import time

import gcs_server
import jax
import numpy as np
import pytest
from etils import epath

from jcm.commands.train import train
from jcm.model.loading import load
from jcm.run import lease, storage
from jcm.runtime import files
from jcm.runtime.errors import JcmError

pytest.importorskip("gcsfs", reason="pip install 'jcm[gcs]'")

_NO_GOOGLE = {
    "FSSPEC_GCS_TOKEN": "anon",
    "NO_GCE_CHECK": "true",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
}


def _variables(url):
    return _NO_GOOGLE | {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}


@pytest.fixture(scope="module")
def store():
    """The server, and the environment variables with which programs find it."""
    with gcs_server.serving() as (server, url):
        yield server, _variables(url)


def _objects(store, folder=""):
    return sorted(
        name.removeprefix(folder)
        for bucket, name in store[0].objects
        if bucket == "bucket" and name.startswith(folder)
    )


@pytest.fixture
def here(store, monkeypatch):
    """The store, with the environment variables set in this process."""
    for name, value in store[1].items():
        monkeypatch.setenv(name, value)
    yield store
    storage.finish_uploads()


def _weights(place):
    return jax.tree.leaves(load(place, ema="params").params)


def test_a_run_in_a_bucket_equals_one_in_a_folder(here, tiny, teacher, monkeypatch):
    monkeypatch.setattr(lease, "_LEASE_SECONDS", 2)
    config, place = tiny("digits_edm"), "gs://bucket/a run"
    config.train.num_steps = 4
    train(config, place)
    storage.finish_uploads()  # As at the end of a program.
    config.train.num_steps = 8
    train(config, place)
    names = _objects(here, "a run/")
    assert {"run.json", "metrics.jsonl", "samples/step_00000008.png"} <= set(names)
    assert {name.split("/")[1] for name in names if name.startswith("ch")} == {"4", "8"}
    assert not [name for name in names if name.endswith((".lock", ".tmp"))]
    storage.finish_uploads()
    for a, b in zip(*map(_weights, (place, teacher)), strict=True):
        np.testing.assert_array_equal(a, b)
    # The lines of the first program are kept.
    ours, theirs = (
        [json.loads(line)["loss"] for line in text.splitlines()]
        for text in (
            epath.Path(f"{place}/metrics.jsonl").read_text(),
            (teacher / "metrics.jsonl").read_text(),
        )
    )
    assert len(ours) == 4 and ours == theirs
    # A damaged checkpoint is set aside, even the last one.
    (name,) = (n for n in _objects(here) if n.endswith("/8/checksums/metadata"))
    here[0].objects["bucket", name].data = b"{}"
    with pytest.raises(JcmError, match="gs://bucket/a run/checkpoints/8/.*damaged"):
        load(place)
    train(config, place)
    for a, b in zip(*map(_weights, (place, teacher)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "8/commit_success.txt" in _objects(here, "a run/damaged/")


def test_local_changes_are_uploaded_and_remote_files_downloaded(here):
    epath.Path("gs://bucket/one/evaluation/scores.jsonl").write_text("a\n")
    epath.Path("gs://bucket/one/checkpoints/4/much").write_text("b")
    # The console of a store creates empty objects to make folders visible.
    for name in ("one/", "one/teacher/"):
        here[0].objects["bucket", name] = copy.copy(
            here[0].objects["bucket", "one/evaluation/scores.jsonl"]
        )
    folder = storage.local_folder("gs://bucket/one")
    assert storage.local_folder("gs://bucket/one") == folder
    del here[0].objects["bucket", "one/"], here[0].objects["bucket", "one/teacher/"]
    assert not (folder / "checkpoints").exists()
    with (folder / "evaluation" / "scores.jsonl").open("a") as file:
        file.write("b\n")
    files.write_text(folder / "teacher" / "run.json", "{}")
    storage.upload(folder / "teacher")
    there = epath.Path("gs://bucket/one")
    assert (there / "evaluation" / "scores.jsonl").read_text() == "a\nb\n"
    assert storage.shared_path(folder / "teacher" / "run.json").read_text() == "{}"
    (folder / "evaluation" / "scores.jsonl").unlink()
    requests = len(here[0].requests)
    storage.upload(folder)
    assert _objects(here, "one/") == ["checkpoints/4/much", "teacher/run.json"]
    # Files that have not changed are not sent again.
    assert not _sent(here, requests)
    # A growing file is sent at times only, until it is synchronised.
    samples = folder / "evaluation" / "a.uint8"
    for size, sends in ((100, True), (110, False), (124, False), (126, True)):
        samples.write_bytes(bytes(size))
        requests = len(here[0].requests)
        storage.upload(folder)
        assert bool(_sent(here, requests)) == sends, size
    samples.write_bytes(bytes(127))
    storage.sync(folder)
    assert (there / "evaluation" / "a.uint8").read_bytes() == bytes(127)


def test_an_object_cannot_leave_the_folder(here):
    epath.Path("gs://bucket/one/run.json").write_text("{}")
    here[0].objects["bucket", "one/../../x"] = here[0].objects["bucket", "one/run.json"]
    with pytest.raises(JcmError, match=r"gs://bucket/one.*one/../../x has a wrong na"):
        storage.local_folder("gs://bucket/one")


def _sent(store, since):
    return [r for r in store[0].requests[since:] if r.startswith(("POST", "PUT"))]


def test_a_store_that_denies_access_is_an_error_of_one_line(here, monkeypatch):
    folder = storage.local_folder("gs://bucket/two")
    (folder / "run.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(gcs_server._Handler, "_upload", lambda self, *_: self._fail(403))
        message = "cannot write gs://bucket/two .*access to it$"
        with pytest.raises(JcmError, match=message):
            storage.sync(folder)
        storage.upload(folder)  # An upload that can wait is tried again later.
        assert _objects(here, "two/") == []
    storage.upload(folder)
    assert _objects(here, "two/") == ["run.json"]


def test_a_local_workdir_is_used_directly(tmp_path):
    assert storage.local_folder(tmp_path) == tmp_path
    assert storage.local_folder("~/a") == pathlib.Path("~/a").expanduser()
    assert str(storage.shared_path(tmp_path / "x")) == str(tmp_path / "x")
    storage.upload(tmp_path)
    storage.sync(tmp_path)


def test_a_second_run_in_a_bucket_raises_unless_the_first_has_died(here, monkeypatch):
    monkeypatch.setattr(lease, "_LEASE_SECONDS", 0.5)
    folder = storage.local_folder("gs://bucket/three")
    with lease.hold(folder):
        with pytest.raises(JcmError, match="three is in use by process"):
            with lease.hold(folder):
                pass
        left = here[0].objects["bucket", "three/.lock"]
        assert str(os.getpid()).encode() in left.data
    assert _objects(here, "three/") == []
    # The holder of the lease was killed and does not renew it.
    here[0].objects["bucket", "three/.lock"] = left
    before = time.monotonic()
    with lease.hold(folder):
        assert time.monotonic() - before >= 1.5
        # Transfers of files, by the run or by a reader, do not release the lease.
        storage.sync(folder)
        reader = storage._Mirror("gs://bucket/three")
        reader.upload()
        assert _objects(here, "three/") == [".lock"]
        shutil.rmtree(reader.local)
    # Of two runs that start together, one gets the lease.
    outcomes = []

    def begin():
        try:
            with lease._hold_object(storage.shared_path(folder) / ".lock"):
                outcomes.append("has it")
                time.sleep(1)
        except JcmError:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["has it", "refused"]


def test_a_run_that_has_lost_its_lease_ends(here, monkeypatch):
    monkeypatch.setattr(lease, "_LEASE_SECONDS", 0.2)
    told, ended = [], threading.Event()

    def leave(error):
        told.append(str(error))
        ended.set()

    monkeypatch.setattr(lease.distributed, "exit_all", leave)
    folder = storage.local_folder("gs://bucket/four")
    with lease.hold(folder):
        # This run was suspended for too long, and another has started.
        storage.shared_path(folder / ".lock").write_text("process 7 on elsewhere\nab 0")
        assert ended.wait(timeout=20)
    assert told == [
        "gs://bucket/four is in use by process 7 on elsewhere: wait, stop that run, or"
        " use another workdir"
    ]
    # The lease of the other run remains.
    assert here[0].objects["bucket", "four/.lock"].data.startswith(b"process 7")


def test_a_second_run_in_a_folder_raises(tmp_path):
    with lease.hold(tmp_path):
        with pytest.raises(JcmError, match=f"{tmp_path} is in use by process"):
            with lease.hold(tmp_path):
                pass
    with lease.hold(tmp_path):
        pass
