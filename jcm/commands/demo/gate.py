"""What a request to the page must be, before gradio sees it.

Gradio answers many more addresses than a page needs, and reads whatever a request
holds. The gate lets the requests of the page and of gradio's clients through, bounds
their number and size, and answers everything else with one line.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Annotated, Any, TypeVar

import msgspec
from absl import logging
from starlette.requests import ClientDisconnect

from jcm.commands.demo.folder import Folder
from jcm.runtime import json_files
from jcm.runtime.errors import JcmError, one_line, shown

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_Kind = TypeVar("_Kind", bound=msgspec.Struct)
App = Callable[[Message, Receive, Send], Awaitable[None]]

UPLOAD_BYTES = 32 * 2**20
"""The largest upload."""

# How many requests are answered at a time, and how many uploads; other uploads wait. An
# open page has two requests.
_REQUESTS, _UPLOADS = 256, 8
# The bytes of a call, those of an upload with the frame around it, and the seconds
# within which they must arrive.
_CALL_BYTES, _FRAMED_BYTES, _CALL_S, _UPLOAD_S = 2**16, UPLOAD_BYTES + 2**16, 20, 300
# How many arguments a call has, how deep they are, and their largest whole number.
_ARGUMENTS, _DEPTH, _LARGEST = 16, 6, 2**64

_API = "/gradio_api"
# The addresses of a page.
_READ = re.compile(
    r"/|/config/?|/manifest\.json|/favicon\.ico|/robots\.txt|/theme\.css"
    r"|/(assets|static|svelte)/.*"
    rf"|{_API}/(info/?|theme\.css|app_id/?|startup-events|queue/(data|status)"
    r"|heartbeat/[\w-]{1,64}|call/\w{1,64}/\w{1,64})",
    re.DOTALL,
)
_FILE = f"{_API}/file="
_CALL = re.compile(rf"{_API}/(queue/join|call/(\w+))/?")
_SMALL = re.compile(rf"{_API}/(?:cancel|(reset))/?")
_UPLOAD = re.compile(rf"{_API}/upload/?")


class _Call(msgspec.Struct):
    """A call of an action, as the page and gradio's clients send it."""

    data: Annotated[list[Any], msgspec.Meta(max_length=_ARGUMENTS)]
    fn_index: int | None = None
    session_hash: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class _Reset(msgspec.Struct):
    """What gradio's client sends at the end of a call that it gives up."""

    event_id: Annotated[str, msgspec.Meta(max_length=64)]


class _Cancel(_Reset, kw_only=True):
    """What ends a call that waits."""

    session_hash: Annotated[str, msgspec.Meta(max_length=64)]
    fn_index: int = 0


class _Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status


class Gate:
    """The middleware (ASGI) in front of gradio."""

    def __init__(
        self,
        app: App,
        *,
        folder: Folder,
        numbers: Collection[int],
        names: Collection[str],
    ):
        """Creates the gate.

        Args:
          app: answers what is let through.
          folder: of the uploads and results.
          numbers: of the actions of the page.
          names: of those that a program may call.
        """
        self._app, self._folder = app, folder
        self._numbers, self._names = numbers, names
        self._requests, self._uploads = 0, asyncio.Semaphore(_UPLOADS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        self._requests += 1
        try:
            if self._requests > _REQUESTS:
                raise _Refused(503, "the page has too many visitors: try again later")
            await self._answer(scope, exchange.receive, exchange.send)
        except _Refused as error:
            await exchange.refuse(error.status, str(error))
        except ClientDisconnect:
            pass
        # Gradio raises many types of exception for requests that it does not expect.
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error, 200)}"
            logging.warning("%s %s: %s", scope["method"], scope["path"][:200], reason)
            logging.debug("the failed request", exc_info=True)
            line = "the request cannot be answered: reload the page"
            await exchange.refuse(400, line)
        finally:
            self._requests -= 1

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets a request of a page through.

        Raises:
          _Refused: for any other request.
        """
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            if path.startswith(_FILE):
                self._check_file(path.removeprefix(_FILE))
            elif not _READ.fullmatch(path):
                raise _Refused(404, "there is no such page")
        elif method != "POST":
            raise _Refused(405, f"{shown(method)} is not answered here")
        elif found := _CALL.fullmatch(path):
            call = self._checked(await _body(receive), found[2])
            scope, receive = _with_body(scope, receive, call)
        elif found := _SMALL.fullmatch(path):
            kind = _Reset if found[1] else _Cancel
            ended = msgspec.json.encode(_decoded(await _body(receive), kind))
            scope, receive = _with_body(scope, receive, ended)
        elif _UPLOAD.fullmatch(path):
            await self._upload(scope, receive, send)
            return
        else:
            raise _Refused(404, "there is no such page")
        await self._app(scope, receive, send)

    def _check_file(self, path: str) -> None:
        """Raises _Refused if a path does not lead to an upload or a result."""
        try:
            self._folder.file(path, "file")
        except JcmError:
            raise _Refused(404, "there is no such file") from None

    def _checked(self, body: bytes, name: str | None) -> bytes:
        """Returns a call with its checked fields alone.

        Args:
          body: of the request.
          name: of the action; None if the body has its number.

        Raises:
          _Refused: if it is not the call of an action.
        """
        call = _decoded(body, _Call)
        if name is None and call.fn_index not in self._numbers:
            raise _Refused(404, f"there is no action {shown(call.fn_index)}")
        if name is not None:
            call.fn_index = None
            if name not in self._names:
                known = ", ".join(sorted(self._names))
                raise _Refused(
                    404, f"there is no action {shown(name)}: use one of {known}"
                )
        _check_plain(call.data)
        return msgspec.json.encode(call)

    async def _upload(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets an upload through, of which the size and the time are bounded."""
        # Gradio would count the parts that arrive until somebody asks for them.
        scope = {**scope, "query_string": b""}
        try:
            async with asyncio.timeout(_UPLOAD_S), self._uploads:
                await asyncio.to_thread(self._folder.check_room)
                await self._app(scope, _bounded(receive, _FRAMED_BYTES), send)
        except JcmError as error:
            raise _Refused(507, str(error)) from None
        except TimeoutError:
            raise _Refused(408, f"the upload takes over {_UPLOAD_S} s") from None


class _Exchange:
    """A request and its answer, which can be refused until it begins."""

    def __init__(self, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self._read = self._begun = self._done = False

    async def receive(self) -> Message:
        """Receives a part of the request."""
        message = await self._receive()
        self._read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the answer."""
        self._begun = True
        if message["type"] == "http.response.body":
            self._done = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, status: int, line: str) -> None:
        """Ends the answer, with one line if it has not begun.

        The rest of the request is read, since many clients send all of it before they
        read the answer.
        """
        if self._done:
            return
        if self._begun:
            await self.send({"type": "http.response.body", "body": b""})
            return
        with contextlib.suppress(TimeoutError, _Refused):
            async with asyncio.timeout(_CALL_S):
                rest = _bounded(self.receive, 2 * _FRAMED_BYTES)
                while not self._read:
                    await rest()
        body = msgspec.json.encode({"detail": line})  # the form of gradio's errors
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def _decoded(body: bytes, kind: type[_Kind]) -> _Kind:
    """Returns what a body of JSON holds.

    Raises:
      _Refused: if it is something else.
    """
    try:
        return json_files.decode(body, kind, "the request", "send other JSON")
    except JcmError as error:
        raise _Refused(400, str(error)) from None


def _check_plain(arguments: Collection[Any]) -> None:
    """Raises _Refused if arguments are nested deeply, or have a huge whole number."""
    level = arguments
    for _ in range(_DEPTH):
        for each in level:
            if isinstance(each, int) and abs(each) > _LARGEST:
                raise _Refused(400, f"the call has a number above {_LARGEST:,}")
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise _Refused(400, f"the call has lists or objects in more than {_DEPTH} levels")


def _with_body(
    scope: Message, receive: Receive, body: bytes
) -> tuple[Message, Receive]:
    """Returns the scope of a request with this body of JSON, and what receives it."""
    own = {
        b"content-length": str(len(body)).encode(),
        b"content-type": b"application/json",
    }
    kept = [each for each in scope["headers"] if each[0].lower() not in own]
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return first.pop() if first else await receive()

    return {**scope, "headers": [*kept, *own.items()]}, received


def _bounded(receive: Receive, most: int) -> Receive:
    """Returns what receives a body of at most `most` bytes, and raises _Refused."""
    left = most

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _Refused(413, f"the request has more than {most:,} bytes")
        return message

    return bounded


async def _body(receive: Receive) -> bytes:
    """Returns the body of a call.

    Raises:
      _Refused: if it is too long, or does not arrive.
    """
    bounded, body, more = _bounded(receive, _CALL_BYTES), b"", True
    try:
        async with asyncio.timeout(_CALL_S):
            while more:
                message = await bounded()
                body += message.get("body", b"")
                more = message.get("more_body", False)
    except TimeoutError:
        raise _Refused(408, f"the request takes over {_CALL_S} s") from None
    return body
