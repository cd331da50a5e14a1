import io
import json
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jcm.run import progress, writers
from jcm.runtime import budget
from jcm.runtime.errors import JcmError


def read_events(folder):
    """Returns all events. A record is length, checksum, event and checksum."""
    events = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[12 + size + 4 :]
    return events


def read_values(folder):
    return {
        value.tag: (event.step, value)
        for event in read_events(folder)
        for value in event.summary.value
    }


def steps(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def write_steps(workdir, numbers, **kwargs):
    writer = writers.create(workdir, **kwargs)
    for step in numbers:
        writer.write_scalars(step, {"loss": float(step)})
    writer.close()


def test_a_signal_does_not_end_the_writer(tmp_path, monkeypatch):
    writer = writers.TensorBoardWriter(tmp_path)
    # So it is for ever after a signal has interrupted `is_alive`.
    monkeypatch.setattr(writer._worker, "is_alive", lambda: False)
    writer.write_scalars(1, {"loss": 0.5})
    writer.close()
    assert read_values(tmp_path)["loss"][0] == 1


def test_scalars_are_in_both_files(tmp_path):
    writer = writers.create(tmp_path / "new" / "run")
    writer.write_scalars(3, {"loss": jnp.float32(0.5), "lr": np.float32(0.25), "n": 7})
    writer.close()
    line = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()
    assert line == '{"step": 3, "loss": 0.5, "lr": 0.25, "n": 7.0}\n'
    values = read_values(tmp_path / "new" / "run")
    numbers = {tag: (step, value.simple_value) for tag, (step, value) in values.items()}
    assert numbers == {"loss": (3, 0.5), "lr": (3, 0.25), "n": (3, 7.0)}


def test_numbers_that_are_not_finite_are_written_as_valid_json(tmp_path):
    written = {"a": float("nan"), "b": float("inf"), "c": jnp.float32(-jnp.inf)}
    writer = writers.create(tmp_path)
    writer.write_scalars(1, written)
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=refuse)
    del record["step"]
    read = {name: float(value) for name, value in record.items()}
    np.testing.assert_equal(read, {k: float(v) for k, v in written.items()})


def test_a_line_is_in_the_file_at_once(tmp_path):
    writer = writers.create(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    assert steps(tmp_path) == [1]  # Nothing was flushed, as after a kill.
    writer.close()


def test_resume_drops_the_lines_that_will_be_written_again(tmp_path):
    write_steps(tmp_path, [10, 20, 30])
    write_steps(tmp_path, [30, 40], resume_step=20)
    assert steps(tmp_path) == [10, 20, 30, 40]
    write_steps(tmp_path, [10], resume_step=0)
    assert steps(tmp_path) == [10]
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


def test_resume_tells_tensorboard_to_hide_later_steps(tmp_path):
    write_steps(tmp_path, [10], resume_step=20)
    starts = [
        event.step
        for event in read_events(tmp_path)
        if event.session_log.status == SessionLog.START
    ]
    assert starts == [21]  # TensorBoard hides this step too.


def test_without_resume_everything_is_kept(tmp_path):
    write_steps(tmp_path, [10, 20])
    write_steps(tmp_path, [15])
    assert steps(tmp_path) == [10, 20, 15]


@pytest.mark.parametrize("half", [b'{"step": 3', b'{"step": 3}', b'{"step": 3, "\xc3'])
@pytest.mark.parametrize("resume_step", [None, 5])
def test_a_half_written_last_line_is_dropped(tmp_path, half, resume_step):
    write_steps(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(half)
    write_steps(tmp_path, [3], resume_step=resume_step)
    assert steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    "batch",
    [
        np.full((4, 8, 8, 1), 255, np.uint8),
        jnp.ones((4, 8, 8, 1)),
        jnp.full((4, 8, 8, 3), 7.0),  # A sample outside of [-1, 1].
    ],
    ids=["uint8", "float", "clipped"],
)
def test_images_become_one_grid(tmp_path, batch):
    writer = writers.create(tmp_path)
    writer.write_images(2, {"samples": batch})
    writer.close()
    step, value = read_values(tmp_path)["samples"]
    picture = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
    assert step == 2 and picture.shape == (
        67,
        67,
        3,
    )  # 2 x 2 cells of 32 pixels, and padding.
    assert (picture == 255).all()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_texts_are_in_tensorboard(tmp_path):
    writer = writers.create(tmp_path)
    writer.write_texts(4, {"note": "hello"})
    writer.close()
    values = read_values(tmp_path)
    texts = {
        tag.removesuffix("/text_summary"): (step, value.tensor.string_val[0].decode())
        for tag, (step, value) in values.items()
    }
    assert texts["note"] == (4, "hello")


def test_other_processes_write_nothing(tmp_path):
    writer = writers.create(tmp_path / "run", resume_step=3, enabled=False)
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_images(1, {"samples": np.zeros((1, 8, 8, 3), np.uint8)})
    writer.write_texts(1, {"note": "hello"})
    writer.close()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def clock(monkeypatch):
    """A clock for the progress alone, which stands still until `now` is set."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now)
    )
    return clock


@pytest.fixture
def lines(monkeypatch):
    lines = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
    return lines


def test_progress_excludes_pauses_from_the_speed(clock, lines):
    meter = progress.Progress(1000, start_step=100, batch_size=32)
    clock.now += 4
    numbers = meter.update(108)
    expected = {"steps_per_sec": 2.0, "images_per_sec": 64.0, "eta_secs": 446.0}
    assert numbers == expected | {"kimg": 3.456}
    with meter.pause():
        clock.now += 1000
    clock.now += 4
    assert meter.update(116)["steps_per_sec"] == pytest.approx(2.0)


def test_a_pause_ends_on_an_exception_too(clock, lines):
    meter = progress.Progress(10)
    with pytest.raises(KeyError), meter.pause():
        clock.now += 1000
        raise KeyError
    clock.now += 1
    assert meter.update(5)["steps_per_sec"] == pytest.approx(5.0)


def test_progress_measures_the_recent_speed(clock, lines):
    meter = progress.Progress(10**6)
    clock.now += 3600  # The first step compiles.
    meter.update(1)
    for step in range(2, 100):
        clock.now += 1
        numbers = meter.update(step)
    assert numbers["steps_per_sec"] == pytest.approx(1.0)


def test_progress_logs_lines_at_intervals_and_at_the_end(clock, lines):
    meter = progress.Progress(40, batch_size=500, log_seconds=10)
    for step in range(1, 41):
        clock.now += 1
        meter.update(step, loss=0.25)
    assert [line.split()[1] for line in lines] == ["10/40", "20/40", "30/40", "40/40"]
    assert lines[0] == (
        "step 10/40  loss 0.25  5.0 kimg  1 steps/s  500 images/s  0:00:30 left"
    )


def test_progress_is_silent_in_other_processes(clock, lines):
    meter = progress.Progress(2, enabled=False)
    clock.now += 100
    assert meter.update(2)["steps_per_sec"] == pytest.approx(0.02)
    meter.close()
    assert not lines


def test_progress_is_a_bar_on_a_terminal(clock, lines, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    meter = progress.Progress(20, start_step=10, batch_size=100, unit="image")
    clock.now += 5
    meter.update(20, loss=1.5)
    meter.close()
    shown = capsys.readouterr().err
    assert "20/20 loss 1.5  2.0 kimg  2 images/s  200 images/s  0:00:00 left" in shown
    assert "100%" in shown and not lines


def test_resuming_keeps_damaged_and_unusual_lines(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: logged.append(text % args)
    )
    monkeypatch.setattr(budget, "JSON_BYTES", 1000)
    path = tmp_path / "metrics.jsonl"
    odd = ['{"step": 1, "loss": null, "note": "text", "done": true}']
    wrong = ["5", "null", "[]", '{"step": null}', '{"step": "Infinity", "fid": 1}']
    wrong += [f'{{"step": 1{"0" * 400}}}', "[" * 900, '{"step": 1, "loss": NaN}']
    wrong += ['{"loss": 1}', "x" * 3000]
    kept = "\n".join(['{"step": 1, "loss": "NaN"}', *odd, *wrong, '{"step": 2}\n'])
    path.write_text(kept + '{"step": 3}\n{"step": 2')
    assert not writers.has_scalars(tmp_path, 1, "fid")
    assert writers.has_scalars(tmp_path, 1, "loss")
    logged.clear()
    write_steps(tmp_path, [3], resume_step=2)
    assert path.read_text() == kept + '{"step": 3, "loss": 3.0}\n'
    (line,) = logged
    assert line.startswith(f"{path}, line 3, is damaged (")
    assert line.endswith(f": the line is not used, nor are {len(wrong)} others")


def test_a_device_in_place_of_the_metrics_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(JcmError, match=r"metrics.jsonl is not a regular file"):
        writers.create(tmp_path, resume_step=1)
