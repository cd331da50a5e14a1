"""Sends 500 requests to the page, 50 at once, of which 100 are hostile.

    python tests/campaigns/page.py [--model=WORKDIR]

Without a model it trains one for seconds. It reports how many requests are answered and
refused, the memory of the server before, at its peak and after, and what is left
behind. The exit code is not 0 if a good request fails, a hostile one is answered or
ends without a line, the log has a traceback, or something does not return.
"""

import argparse
import asyncio
import collections
import contextlib
import io
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

import httpx
import numpy as np
import psutil
from PIL import Image

_OPEN = re.compile(r"open (http://\S+?)/? in a browser")
_API = "/gradio_api"
# What may remain of the memory, and how many descriptors and threads.
_MEMORY, _MORE = 1.10, 8
_LABEL = "any class"


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
    done, answer = await to.call("sample", random.randrange(99), count, _LABEL, 2)
    return done and len(answer[0]) == count and "evaluations" in answer[1]


async def _fetch(to):
    done, answer = await to.call("picture", 3, 1, _LABEL)
    return done and (await to.seen(f"{_API}/file={answer[0]['background']['path']}"))[0]


async def _browse(to):
    config = (await to.http.get("/config")).json()
    shows = [
        each["id"]
        for each in config["dependencies"]
        if len(each["inputs"]) == 4 and len(each["outputs"]) == 3
    ]
    message = await to.browse(shows[0], [1, 2, _LABEL, 1])
    return message["success"] and len(message["output"]["data"][0]) == 2


async def _enlarge(to):
    photo = await to.upload(png((400, 300)))
    done, answer = await to.call("super_resolve", 0, 2, _LABEL, photo, 2)
    return done and len(answer[0]) == 3


async def _large(to):
    photo = await to.upload(png((4000, 3000), colour="red"))
    return (await to.call("super_resolve", 0, 1, _LABEL, photo, 2))[0]


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
    done, answer = await to.call("inpaint", 0, 2, _LABEL, drawing)
    return done and len(answer[0]) == 3


async def _strokes(to):
    drawing = {"background": None, "layers": [], "composite": None}
    drawing["composite"] = await to.upload(png((64, 64)))
    return (await to.call("strokes_to_picture", 0, 2, _LABEL, drawing, 1.0))[0]


async def _interpolate(to):
    return (await to.call("interpolate", 0, 5, _LABEL, 7))[0]


_GOOD = [_page, _config, _asset, _sample, _fetch, _browse, _enlarge, _large]
_GOOD += [_inpaint, _strokes, _interpolate]

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
        return await to.call("super_resolve", 0, 1, _LABEL, photo, 2)

    return send


def _layers(count, size):
    async def send(to):
        content = png((size, size), "RGBA", (1, 2, 3, 255))
        drawing = {"background": await to.upload(content), "composite": None}
        drawing["layers"] = [drawing["background"]] * count
        return await to.call("inpaint", 0, 1, _LABEL, drawing)

    return send


def _file(path, **more):
    return _values("super_resolve", 0, 1, _LABEL, {"path": path, **more}, 2)


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
_HOSTILE = {
    "True as a count": _values("sample", 0, True, _LABEL, 1),
    "text as a count": _values("sample", 0, "4", _LABEL, 1),
    "a fraction": _values("sample", 0, 1.5, _LABEL, 1),
    "a list as a class": _values("sample", 0, 1, [_LABEL], 1),
    "an object as a class": _values("sample", 0, 1, {"a": 1}, 1),
    "another class": _values("sample", 0, 1, "<img src=x onerror=alert(1)>", 1),
    "a negative seed": _values("sample", -1, 1, _LABEL, 1),
    "a large seed": _values("sample", 2**40, 1, _LABEL, 1),
    "a huge seed": _body(f'{{"data": [1{"0" * 5000}, 1, "any class", 1]}}'),
    "many images": _values("sample", 0, 10**9, _LABEL, 1),
    "many steps": _values("sample", 0, 1, _LABEL, 10**9),
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
    "text as a picture": _values("super_resolve", 0, 1, _LABEL, "/etc/passwd", 2),
    "a picture elsewhere": _file("/etc/hostname"),
    "a device": _file("/dev/zero"),
    "a path upwards": _file("../../../etc/passwd", meta={"_type": "gradio.FileData"}),
    "a path with NUL": _file("\0"),
    "an address as a path": _file("http://169.254.169.254/latest/"),
    "an address": _values(
        *("super_resolve", 0, 1, _LABEL, {"url": "http://127.0.0.1:1/a.png"}, 2)
    ),
    "data as an address": _values(
        *("super_resolve", 0, 1, _LABEL, {"url": "data:image/png;base64,@@@"}, 2)
    ),
    "another factor": _file("/a", meta=3),
    "a list as a drawing": _values("inpaint", 0, 1, _LABEL, [1, 2]),
    "a list as a layer": _values("inpaint", 0, 1, _LABEL, {"layers": [[1]]}),
    "a number as layers": _values("inpaint", 0, 1, _LABEL, {"layers": 7}),
    "an id of a drawing": _values("inpaint", 0, 1, _LABEL, {"id": "x"}),
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
        f"{_API}/run/sample", json={"data": [0, 1, _LABEL, 1]}
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


class Server:
    """`jcm demo` with a folder of its own for temporary files."""

    def __init__(self, model, folder):
        self.temporary, self.log = folder / "temporary", folder / "log"
        self.temporary.mkdir()
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jcm.main", "demo", str(model)],
                stderr=log,
                stdout=log,
                env=environment,
            )
        while not (found := _OPEN.search(self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        self.address = found[1]
        self.about = psutil.Process(self.process.pid)
        self.peak = 0

    def mib(self):
        return self.about.memory_info().rss / 2**20

    async def watch(self):
        while True:
            self.peak = max(self.peak, self.mib())
            await asyncio.sleep(0.02)

    def state(self):
        return {
            "memory, MiB": round(self.mib()),
            "descriptors": self.about.num_fds(),
            "threads": self.about.num_threads(),
            "temporary files": sum(len(names) for *_, names in os.walk(self.temporary)),
        }

    async def settled(self, visitor, most=None):
        """Returns the state when it fits `most`, or after a minute.

        A request once in a second lets the server end the threads that do nothing.
        """
        for _ in range(60):
            state = self.state()
            if most and all(state[key] <= most[key] for key in most):
                break
            await visitor.seen("/config")
            await asyncio.sleep(1)
        return state


async def campaign(server, requests, hostile, at_once):
    """Sends the requests; returns the counts of their results, and the states."""
    visitor = Visitor(server.address)
    for good in _GOOD:  # compiles every program
        assert await good(visitor), good.__name__
    for count in [*range(1, 17)] * 8:  # and fills gradio's memory of 100 visitors
        assert (await visitor.call("sample", 0, count, _LABEL, 2))[0]
    for name in ("14 layers of 36 megapixels", "no picture"):
        await _HOSTILE[name](visitor)
    before = await server.settled(visitor)  # the server tidies up every 30 s
    names = list(_HOSTILE) * (hostile // len(_HOSTILE) + 1)
    tasks = [("hostile", each) for each in names[:hostile]]
    tasks += [("good", _GOOD[i % len(_GOOD)]) for i in range(requests - hostile)]
    random.Random(0).shuffle(tasks)
    counts, failed = collections.Counter(), []
    gate = asyncio.Semaphore(at_once)

    async def one(kind, task):
        name = task if kind == "hostile" else task.__name__
        async with gate:
            try:
                if kind == "good":
                    ok, line = await task(visitor), ""
                else:
                    done, line = await _HOSTILE[task](visitor)
                    one_line = isinstance(line, str) and "\n" not in line.strip()
                    ok = bool(not done and one_line and line)
            except (httpx.HTTPError, AssertionError) as error:
                ok, line = False, repr(error)
        counts[f"{kind}, as it should be" if ok else f"{kind}, wrong"] += 1
        if not ok:
            failed.append((name, line))

    watching = asyncio.create_task(server.watch())
    begun = time.monotonic()
    await asyncio.gather(*(one(*task) for task in tasks))
    counts["seconds"] = round(time.monotonic() - begun)
    counts["turned away, and sent again"] = visitor.away
    watching.cancel()
    most = {key: value + _MORE for key, value in before.items()}
    most["memory, MiB"] = before["memory, MiB"] * _MEMORY
    del most["temporary files"]  # results are kept for an hour
    after = await server.settled(visitor, most)
    await visitor.http.aclose()
    kept = all(after[key] <= most[key] for key in most)
    return counts, failed, before, after, kept


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--hostile", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = options.model or folder / "model"
        if options.model is None:
            config = "--config=configs/digits_cd.py:smoke"
            train = [sys.executable, "-m", "jcm.main", config, f"--workdir={model}"]
            subprocess.run(train, check=True, capture_output=True)
        server = Server(model, folder)
        try:
            counts, failed, before, after, kept = asyncio.run(
                campaign(server, options.requests, options.hostile, options.at_once)
            )
        finally:
            server.process.terminate()
            code = server.process.wait(timeout=60)
        log = server.log.read_text()
        left = [str(each) for each in server.temporary.rglob("*")]
    for name, count in counts.items():
        print(f"{name}: {count}")
    print(f"before: {before}\npeak: {server.peak:.0f} MiB\nafter: {after}")
    print(f"tracebacks: {log.count('Traceback')}; exit code {code}; left: {left}")
    for each in failed:
        print("wrong:", each)
    if "Traceback" in log:
        print(log[-5000:])
    good = kept and not failed and "Traceback" not in log and code == 75 and not left
    print("all is well" if good else "something is wrong")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
