"""A client of the page, with good requests and hostile ones."""

import asyncio
import contextlib
import io
import json
import random
import re

import httpx
import numpy as np
from PIL import Image

_API = "/gradio_api"
LABEL = "any class"
"""The choice of the page for samples of every class."""


def png(size, mode="RGB", colour=None, **options):
    """Returns a PNG file of one colour, or of random pixels."""
    if colour is None:
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
    else:
        image = Image.new(mode, size, colour)
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


class Visitor:
    """A client of the page.

    Attributes:
      away: how often it was turned away, since too many calls waited.
    """

    def __init__(self, address):
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
        self.http = httpx.AsyncClient(base_url=address, timeout=600, limits=limits)
        self.away = 0
        self.pictures = {}

    async def upload(self, content, name="picture.png"):
        """Uploads a file; returns gradio's data of it."""
        for _ in range(600):
            reply = await self.http.post(
                f"{_API}/upload", files={"files": (name, content)}
            )
            if reply.status_code != 503:
                break
            self.away += 1
            await asyncio.sleep(0.2)
        reply.raise_for_status()
        return {"path": reply.json()[0], "meta": {"_type": "gradio.FileData"}}

    async def call(self, name, *data):
        """Calls an action; returns whether it was answered, and the answer."""
        return await self.send(f"{_API}/call/{name}", json.dumps({"data": data}))

    async def send(self, path, content):
        """Sends the body of a call, again if it is turned away."""
        headers = {"content-type": "application/json"}
        for _ in range(600):
            reply = await self.http.post(path, content=content, headers=headers)
            if reply.status_code != 503:
                break
            assert "full" in reply.text, reply.text
            self.away += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))
        if reply.status_code != 200:
            return False, _line(reply)
        event = reply.json()["event_id"]
        reply = await self.http.get(f"{path}/{event}")
        *_, kind, data, _, _ = ["", *reply.text.split("\n")]
        answer = json.loads(data.removeprefix("data: "))
        if kind == "event: complete":
            return True, answer
        return False, (answer or {}).get("error")

    async def browse(self, number, data):
        """Calls an action as a browser does; returns the last message."""
        session = f"{random.getrandbits(60):x}"
        body = {"data": data, "fn_index": number, "session_hash": session}
        for _ in range(600):
            reply = await self.http.post(f"{_API}/queue/join", json=body)
            if reply.status_code != 503:
                break
            self.away += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))
        reply.raise_for_status()
        where = f"{_API}/queue/data?session_hash={session}"
        reply = await self.http.get(where)
        found = [json.loads(each[6:]) for each in reply.text.split("\n\n") if each]
        return next(each for each in found if each["msg"] == "process_completed")

    async def seen(self, path):
        """Returns whether the page answers an address, and its line if not."""
        reply = await self.http.get(path)
        good = reply.status_code == 200 and not reply.text.startswith("event: error")
        return good, _line(reply)


def _line(reply):
    if reply.text.startswith("event: error\ndata: "):
        return reply.text.removeprefix("event: error\ndata: ")
    try:
        return reply.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return None if reply.status_code == 500 else reply.text


# --- good requests: each returns whether it was answered as it should be


async def _page(to):
    return (await to.seen("/"))[0]


async def _config(to):
    return (await to.seen("/config"))[0] and (await to.seen(f"{_API}/info"))[0]


async def _asset(to):
    text = (await to.http.get("/")).text
    found = re.search(r"\./(assets/[^\"]+\.js)", text)
    return (await to.seen(f"/{found[1]}"))[0]


async def _sample(to):
    count = random.randint(1, 16)
    done, answer = await to.call("sample", random.randrange(99), count, LABEL, 2)
    return done and len(answer[0]) == count and "evaluations" in answer[1]


async def _fetch(to):
    done, answer = await to.call("picture", 3, 1, LABEL)
    return done and (await to.seen(f"{_API}/file={answer[0]['background']['path']}"))[0]


async def _browse(to):
    config = (await to.http.get("/config")).json()
    shows = [
        each["id"]
        for each in config["dependencies"]
        if len(each["inputs"]) == 4 and len(each["outputs"]) == 3
    ]
    message = await to.browse(shows[0], [1, 2, LABEL, 1])
    return message["success"] and len(message["output"]["data"][0]) == 2


async def _enlarge(to):
    photo = await to.upload(png((400, 300)))
    done, answer = await to.call("super_resolve", 0, 2, LABEL, photo, 2)
    return done and len(answer[0]) == 3


async def _large(to):
    photo = await to.upload(png((4000, 3000), colour="red"))
    return (await to.call("super_resolve", 0, 1, LABEL, photo, 2))[0]


async def _inpaint(to):
    paint = Image.new("RGBA", (64, 64))
    paint.paste("red", (20, 20, 40, 40))
    content = io.BytesIO()
    paint.save(content, "PNG")
    drawing = {
        "background": await to.upload(png((64, 64))),
        "layers": [await to.upload(content.getvalue())],
        "composite": None,
    }
    done, answer = await to.call("inpaint", 0, 2, LABEL, drawing)
    return done and len(answer[0]) == 3


async def _strokes(to):
    drawing = {"background": None, "layers": [], "composite": None}
    drawing["composite"] = await to.upload(png((64, 64)))
    return (await to.call("strokes_to_picture", 0, 2, LABEL, drawing, 1.0))[0]


async def _interpolate(to):
    return (await to.call("interpolate", 0, 5, LABEL, 7))[0]


GOOD = [_page, _config, _asset, _sample, _fetch, _browse, _enlarge, _large]
GOOD += [_inpaint, _strokes, _interpolate]

# --- hostile requests: each returns whether it was answered, and the line


def _values(name, *data):
    async def send(to):
        return await to.call(name, *data)

    return send


def _body(content, path=f"{_API}/call/sample"):
    async def send(to):
        return await to.send(path, content)

    return send


def _get(path):
    async def send(to):
        return await to.seen(path)

    return send


def _post(path, **options):
    async def send(to):
        reply = await to.http.post(path, **options)
        return reply.status_code == 200, _line(reply)

    return send


def _picture(content, name="a.png"):
    async def send(to):
        photo = await to.upload(content(), name)
        return await to.call("super_resolve", 0, 1, LABEL, photo, 2)

    return send


def _layers(count, size):
    async def send(to):
        content = png((size, size), "RGBA", (1, 2, 3, 255))
        drawing = {"background": await to.upload(content), "composite": None}
        drawing["layers"] = [drawing["background"]] * count
        return await to.call("inpaint", 0, 1, LABEL, drawing)

    return send


def _file(path, **more):
    return _values("super_resolve", 0, 1, LABEL, {"path": path, **more}, 2)


async def _drop(to):
    """Ends an upload in the middle, which gets no answer."""

    async def parts():
        yield b"--x\r\ncontent-disposition: form-data; "
        yield b'name="files"; filename="a"\r\n\r\n'
        yield bytes(2**20)
        raise ConnectionError

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with contextlib.suppress(ConnectionError):
        await to.http.post(f"{_API}/upload", content=parts(), headers=headers)
    return False, "no answer"


def _nested(depth):
    return f'{{"data": {"[" * depth}{"]" * depth}}}'


_BIG = 33 * 2**20
HOSTILE = {
    "True as a count": _values("sample", 0, True, LABEL, 1),
    "text as a count": _values("sample", 0, "4", LABEL, 1),
    "a fraction": _values("sample", 0, 1.5, LABEL, 1),
    "a list as a class": _values("sample", 0, 1, [LABEL], 1),
    "an object as a class": _values("sample", 0, 1, {"a": 1}, 1),
    "another class": _values("sample", 0, 1, "<img src=x onerror=alert(1)>", 1),
    "a negative seed": _values("sample", -1, 1, LABEL, 1),
    "a large seed": _values("sample", 2**40, 1, LABEL, 1),
    "a huge seed": _body(f'{{"data": [1{"0" * 5000}, 1, "any class", 1]}}'),
    "many images": _values("sample", 0, 10**9, LABEL, 1),
    "many steps": _values("sample", 0, 1, LABEL, 10**9),
    "nothing": _values("sample"),
    "too few values": _values("sample", 0, 1),
    "too many values": _values("sample", *[0] * 15),
    "null": _values("sample", None, None, None, None),
    "NaN": _body('{"data": [NaN, 1, "any class", 1]}'),
    "Infinity": _body('{"data": [0, 1, "any class", Infinity]}'),
    "no JSON": _body("{"),
    "no UTF-8": _body(b'{"data": ["\xff"]}'),
    "half a character": _body('{"data": ["\\ud800"]}'),
    "a list as the body": _body("[]"),
    "no list": _body('{"data": {"a": 1}}'),
    "a deep list": _body(_nested(900)),
    "a very deep list": _body(_nested(20_000)),
    "a long call": _body(json.dumps({"data": ["x" * 2**20]})),
    "another action": _body('{"data": []}', f"{_API}/call/none"),
    "another number": _body(
        '{"data": [], "fn_index": 999, "session_hash": "a"}', f"{_API}/queue/join"
    ),
    "text as a number": _body(
        '{"data": [], "fn_index": "0", "session_hash": "a"}', f"{_API}/queue/join"
    ),
    "a long session": _body(
        json.dumps({"data": [], "fn_index": 0, "session_hash": "a" * 999}),
        f"{_API}/queue/join",
    ),
    "text as a picture": _values("super_resolve", 0, 1, LABEL, "/etc/passwd", 2),
    "a picture elsewhere": _file("/etc/hostname"),
    "a device": _file("/dev/zero"),
    "a path upwards": _file("../../../etc/passwd", meta={"_type": "gradio.FileData"}),
    "a path with NUL": _file("\0"),
    "an address as a path": _file("http://169.254.169.254/latest/"),
    "an address": _values(
        *("super_resolve", 0, 1, LABEL, {"url": "http://127.0.0.1:1/a.png"}, 2)
    ),
    "data as an address": _values(
        *("super_resolve", 0, 1, LABEL, {"url": "data:image/png;base64,@@@"}, 2)
    ),
    "another factor": _file("/a", meta=3),
    "a list as a drawing": _values("inpaint", 0, 1, LABEL, [1, 2]),
    "a list as a layer": _values("inpaint", 0, 1, LABEL, {"layers": [[1]]}),
    "a number as layers": _values("inpaint", 0, 1, LABEL, {"layers": 7}),
    "an id of a drawing": _values("inpaint", 0, 1, LABEL, {"id": "x"}),
    "NaN as a noise level": _body(
        '{"data": [0, 1, "any class", null, NaN]}', f"{_API}/call/strokes_to_picture"
    ),
    "no picture": _picture(lambda: b"no picture"),
    "a cut picture": _picture(lambda: png((300, 300))[:20_000]),
    "a picture of SVG": _picture(lambda: b"<svg onload='alert(1)'/>", "a.svg"),
    "100 megapixels": _picture(lambda: png((10_000, 10_000), colour="red")),
    "400 megapixels": _picture(lambda: png((20_000, 20_000), "1", 1)),
    "14 layers of 36 megapixels": _layers(14, 6000),
    "2 layers of 36 megapixels": _layers(2, 6000),
    "an upload of 33 MiB": _post(f"{_API}/upload", files={"files": bytes(_BIG)}),
    "an upload in no form": _post(f"{_API}/upload", content=b"x"),
    "an upload without a boundary": _post(
        f"{_API}/upload", content=b"x", headers={"content-type": "multipart/form-data"}
    ),
    "an upload of text": _post(f"{_API}/upload", data={"files": "x"}, files={"a": b""}),
    "an upload that ends": _drop,
    "a file elsewhere": _get(f"{_API}/file=/etc/passwd"),
    "a file upwards": _get(f"{_API}/file=../../etc/passwd"),
    "a file of an address": _get(f"{_API}/file=http://127.0.0.1:1/"),
    "the proxy": _get(f"{_API}/proxy=http://127.0.0.1:1/"),
    "the monitor": _get("/monitoring"),
    "a deep link": _get("/gradio_api/deep_link?session_hash=a"),
    "a stranger's event": _get(f"{_API}/call/sample/{'0' * 32}"),
    "a call past the queue": _post(
        f"{_API}/run/sample", json={"data": [0, 1, LABEL, 1]}
    ),
    "blobs of a drawing": _post(
        f"{_API}/component_server",
        data={"component_id": "1", "session_hash": "a", "fn_name": "accept_blobs"},
        files={"file": b"x"},
    ),
    "a recording": _post(f"{_API}/process_recording", files={"video": b"x"}),
    "a cancelled call": _post(f"{_API}/cancel", json={"session_hash": []}),
}

# --- the server
