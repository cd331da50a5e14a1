"""Tests of what the page lets through, and of what it takes for an argument."""

import asyncio
import json
import os

import pytest

from jcm.commands.demo.folder import Folder
from jcm.runtime.errors import JcmError

_CALL = "/gradio_api/call/sample"
_JOIN = "/gradio_api/queue/join"


@pytest.fixture
def folder(tmp_path):
    """An empty folder that one file fills."""
    return Folder(tmp_path, most=2**16)


@pytest.fixture
def ask(folder):
    """Sends a request through the gate to a program that answers with what it gets."""
    from jcm.commands.demo.gate import Gate

    async def program(scope, receive, send):
        body = (await receive()).get("body", b"")
        if body == b"fail":
            raise KeyError("fail")
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    gate = Gate(program, folder=folder, numbers={0, 1}, names={"sample"})

    def ask(method, path, body=b"", parts=1):
        size = -(-len(body) // parts)
        messages = [
            {
                "type": "http.request",
                "body": body[i * size : (i + 1) * size],
                "more_body": i + 1 < parts,
            }
            for i in range(parts)
        ]
        answer = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            answer.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": []}
        asyncio.run(gate(scope, receive, send))
        text = b"".join(each.get("body", b"") for each in answer)
        return answer[0]["status"], text.decode()

    return ask


def test_calls_get_through_with_their_checked_fields_alone(ask):
    call = {"data": [0, "a", {"path": "b"}], "session_hash": "c", "batched": True}
    status, text = ask("POST", _JOIN, json.dumps({**call, "fn_index": 1}).encode())
    del call["batched"]
    assert status == 200 and json.loads(text) == {**call, "fn_index": 1}
    assert ask("POST", _CALL, json.dumps(call).encode())[0] == 200
    assert ask("GET", "/")[0] == 200
    assert ask("POST", "/gradio_api/upload", b"a picture")[0] == 200


def test_calls_can_be_ended(ask):
    reset = {"event_id": "e"}  # all that gradio's client sends
    cancel = {**reset, "session_hash": "s", "fn_index": 1}
    for name, body in (("reset", reset), ("cancel", cancel)):
        sent = json.dumps({**body, "other": 1}).encode()
        status, text = ask("POST", f"/gradio_api/{name}", sent)
        assert status == 200 and json.loads(text) == body
    status, text = ask("POST", "/gradio_api/cancel", json.dumps(reset).encode())
    assert status == 400 and "session_hash" in text
    assert ask("POST", "/gradio_api/reset", b"{}")[0] == 400


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"{", 400, "damaged"),
        (b"[]", 400, "Expected `object`"),
        (b'{"data": 1}', 400, "Expected `array`"),
        (b'{"data": [NaN]}', 400, "malformed"),
        (b'{"data": [1e999]}', 400, "out of range"),
        (b'{"data": [1%s]}' % (b"0" * 300), 400, "number above"),
        (b'{"data": [[[[[[[1]]]]]]]}', 400, "6 levels"),
        (b'{"data": %s%s}' % (b"[" * 9000, b"]" * 9000), 400, "recursion"),
        (b'{"data": ["\\ud800"]}', 400, "damaged"),
        (b'{"data": [%s1]}' % (b"1," * 20), 400, "length <= 16"),
        (b'{"data": ["%s"]}' % (b"x" * 2**17), 413, "more than 65,536 bytes"),
    ],
)
def test_calls_that_are_none_are_refused_with_a_line(ask, body, status, line):
    for parts in (1, 3):
        found, text = ask("POST", _CALL, body, parts)
        assert found == status and line in json.loads(text)["detail"]


def test_other_actions_are_refused(ask):
    for number in (7, None):
        body = json.dumps({"data": [], "fn_index": number}).encode()
        status, text = ask("POST", _JOIN, body)
        assert status == 404 and f"there is no action {number}" in text
    status, text = ask("POST", "/gradio_api/call/none", b'{"data": []}')
    assert status == 404 and "there is no action 'none': use one of sample" in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1/", 404),
        ("GET", "/gradio_api/file=http://127.0.0.1/", 404),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("GET", "/gradio_api/file=../etc/passwd", 404),
        ("GET", "/monitoring", 404),
        ("POST", "/gradio_api/run/sample", 404),
        ("POST", "/gradio_api/component_server", 404),
        ("DELETE", "/", 405),
    ],
)
def test_other_addresses_are_refused(ask, method, path, status):
    found, text = ask(method, path, b"{}")
    assert found == status and json.loads(text)["detail"]


def test_a_long_upload_is_refused_and_read_to_its_end(ask, monkeypatch):
    from jcm.commands.demo import gate

    monkeypatch.setattr(gate, "_FRAMED_BYTES", 10)
    status, text = ask("POST", "/gradio_api/upload", b"x" * 15, parts=1)
    assert status == 413 and "more than 10 bytes" in text


def test_no_upload_is_taken_while_the_folder_is_full(ask, folder):
    (folder.path / "new").write_bytes(bytes(2**16 + 1))
    status, text = ask("POST", "/gradio_api/upload", b"a")
    assert status == 507 and "no room for uploads" in text
    os.utime(folder.path / "new", (0, 0))
    assert ask("POST", "/gradio_api/upload", b"a")[0] == 200


def test_a_failure_of_gradio_is_one_line(ask):
    status, text = ask("POST", "/gradio_api/upload", b"fail")
    assert status == 400 and "cannot be answered" in text


def test_the_oldest_files_make_room(folder):
    for age, name in enumerate(["new", "old", "older"]):
        path = folder.path / name / "image.png"
        path.parent.mkdir()
        path.write_bytes(bytes(60))  # counts more
        os.utime(path, (path.stat().st_mtime - 100 * age,) * 2)
    assert folder.tidy() == 2**16
    assert [path.parent.name for path in folder.path.glob("*/*")] == ["new"]
    os.utime(folder.path / "new" / "image.png", (0, 0))
    os.utime(folder.path / "old", (0, 0))
    assert folder.tidy() == 0
    assert not (folder.path / "old").exists()


def test_empty_files_count(tmp_path):
    folder = Folder(tmp_path, most=2**17)
    for name in "abc":
        (tmp_path / name).touch()
    assert folder.tidy() == 3 * 2**16
    with pytest.raises(JcmError, match="no room for uploads"):
        folder.check_room()
    os.utime(tmp_path / "a", (tmp_path.stat().st_mtime - 100,) * 2)
    folder.check_room()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_only_files_of_the_folder_are_read(folder, tmp_path_factory):
    inside, outside = folder.path / "a", tmp_path_factory.mktemp("other") / "b"
    inside.touch()
    outside.touch()
    (folder.path / "link").symlink_to(outside)
    assert folder.file(str(inside), "Picture") == inside
    for path in (outside, folder.path / "link", folder.path, "/dev/zero", "\0", ""):
        with pytest.raises(JcmError, match="Picture: there is no such upload"):
            folder.file(str(path), "Picture")


def test_values_of_controls_are_checked(folder):
    gr = pytest.importorskip("gradio")
    from jcm.commands.demo.controls import Drawing, checked

    (folder.path / "a").touch()
    file = {"path": str(folder.path / "a")}
    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=9)
    count = gr.Slider(1, 16, 4, step=1, label="Count")
    sigma = gr.Slider(0.1, 20.0, 1.0, label="Noise")
    label = gr.Dropdown(["any", "<b>"], label="Class")
    image, editor = gr.Image(label="Picture"), gr.ImageEditor(label="Paint")
    assert checked(seed, 3, folder) == 3
    assert checked(sigma, 2, folder) == 2.0
    assert checked(label, "<b>", folder) == "<b>"
    assert checked(label, None, folder) == "any"
    assert checked(image, None, folder) is None
    assert checked(image, file, folder) == folder.path / "a"
    drawn = checked(editor, {"background": file, "layers": [file, None]}, folder)
    assert drawn == Drawing(folder.path / "a", [folder.path / "a"], None)
    for control, given, line in [
        (seed, None, "Seed: enter a number"),
        (seed, True, "Seed=True must be a whole number"),
        (seed, 1.5, "Seed=1.5 must be a whole number"),
        (seed, 10, "Seed=10 must be at most 9"),
        (seed, -1, "Seed=-1 must be at least 0"),
        (seed, 10**5000, "Seed=a huge int must be at most 9"),
        (count, "4", "Count='4' must be a whole number"),
        (count, [4], r"Count=\[4\] must be a whole number"),
        (sigma, float("nan"), "Noise=nan must be at least 0.1"),
        (sigma, float("inf"), "Noise=inf must be at most 20"),
        (sigma, True, "Noise=True must be a number"),
        (sigma, {}, "Noise={} must be a number"),
        (label, ["any"], r"Class=\['any'\] is no choice: use one of any, <b>"),
        (label, True, "Class=True is no choice"),
        (image, "/etc/passwd", "Picture='/etc/passwd' is no upload"),
        (image, {"url": "http://a/"}, "is no upload: upload the picture first"),
        (image, {"path": "http://a/"}, "there is no such upload"),
        (editor, [1], r"Paint=\[1\] is no drawing"),
        (editor, {"layers": 7}, "is no drawing"),
        (editor, {"layers": [file] * 9}, "9 layers are more than 8"),
        (editor, {"layers": [[1]]}, r"Paint, layer 0=\[1\] is no upload"),
    ]:
        with pytest.raises(JcmError, match=line):
            checked(control, given, folder)


def test_the_warning_says_what_others_can_reach():
    from jcm.commands.demo import server

    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3"):
        assert server.exposed(host) is None
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.org"):
        line = server.exposed(host)
        assert line.startswith(f"whoever can reach {host} can use this model")
        assert "no password" in line and "20 wait" in line and "32 MiB" in line
