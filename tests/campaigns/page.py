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
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

import httpx
import psutil
import visitors

_OPEN = re.compile(r"open (http://\S+?)/? in a browser")
# What may remain of the memory, and how many descriptors and threads.
_MEMORY, _MORE = 1.10, 8


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
    visitor = visitors.Visitor(server.address)
    for good in visitors.GOOD:  # compiles every program
        assert await good(visitor), good.__name__
    for count in [*range(1, 17)] * 8:  # and fills gradio's memory of 100 visitors
        assert (await visitor.call("sample", 0, count, visitors.LABEL, 2))[0]
    for name in ("14 layers of 36 megapixels", "no picture"):
        await visitors.HOSTILE[name](visitor)
    before = await server.settled(visitor)  # the server tidies up every 30 s
    names = list(visitors.HOSTILE) * (hostile // len(visitors.HOSTILE) + 1)
    tasks = [("hostile", each) for each in names[:hostile]]
    tasks += [
        ("good", visitors.GOOD[i % len(visitors.GOOD)])
        for i in range(requests - hostile)
    ]
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
                    done, line = await visitors.HOSTILE[task](visitor)
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
