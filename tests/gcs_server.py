"""An object store in memory with the protocol that gcsfs and tensorstore use.

python gcs_server.py [PORT]; or `with serving() as url:`. Any bucket name exists.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_LOCK = threading.RLock()
_CLOCK = [int(time.time() * 1e6)]


class _Object:
    def __init__(self, data, kind):
        with _LOCK:
            _CLOCK[0] += 1
            self.generation = _CLOCK[0]
        self.data, self.kind = data, kind or "application/octet-stream"
        self.time = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.md5 = base64.b64encode(hashlib.md5(data).digest()).decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Otherwise each request takes 40 ms.

    def log_message(self, *_):
        pass

    def _send(self, code, body=b"", kind="application/json", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, code, message=""):
        self._send(
            code, {"error": {"code": code, "message": message}} if code != 304 else b""
        )

    def _body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            out = b""
            while size := int(self.rfile.readline(), 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _about(self, bucket, name, o):
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{o.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(o.generation),
            "metageneration": "1",
            "contentType": o.kind,
            "storageClass": "STANDARD",
            "size": str(len(o.data)),
            "timeCreated": o.time,
            "updated": o.time,
            "md5Hash": o.md5,
            "etag": o.md5,
        }

    def _mismatch(self, o):
        """Returns whether a condition of the request on the generation fails."""
        now = o.generation if o else 0
        q = self.query
        if "ifGenerationMatch" in q and int(q["ifGenerationMatch"]) != now:
            return 412
        if "ifGenerationNotMatch" in q and int(q["ifGenerationNotMatch"]) == now:
            return 304 if self.command == "GET" else 412
        return 0

    def _put(self, bucket, name, data, kind):
        with _LOCK:
            if code := self._mismatch(self.server.objects.get((bucket, name))):
                return self._fail(code, "conditionNotMet")
            o = self.server.objects[bucket, name] = _Object(data, kind)
        return self._send(200, self._about(bucket, name, o))

    def _any(self):
        parts = urlsplit(self.path)
        self.query = {
            k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()
        }
        body = self._body()
        self.server.requests.append(f"{self.command} {self.path}")
        path = re.sub(r"^/(download/)?storage/v1", "", parts.path)
        if path.startswith("/upload/storage/v1/b/"):
            return self._upload(unquote(path.split("/")[5]), body)
        if path == "/b" and self.command == "POST":
            return self._send(200, self._bucket(json.loads(body)["name"]))
        if m := re.fullmatch(r"/b/([^/]+)", path):
            return self._send(200, self._bucket(m[1]))
        if m := re.fullmatch(r"/b/([^/]+)/o", path):
            return self._list(unquote(m[1]))
        if m := re.fullmatch(r"/b/([^/]+)/o/([^/]+)", path):
            return self._object(unquote(m[1]), unquote(m[2]))
        if m := re.fullmatch(
            r"/b/([^/]+)/o/([^/]+)/(?:rewrite|copy)To/b/([^/]+)/o/([^/]+)", path
        ):
            return self._copy(*map(unquote, m.groups()))
        if m := re.fullmatch(r"/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)", path):
            b, old, new = map(unquote, m.groups())
            return self._copy(b, old, b, new, move=True)
        return self._fail(501, f"{self.command} {self.path}")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _any

    def _bucket(self, name):
        return {
            "kind": "storage#bucket",
            "id": name,
            "name": name,
            "location": "US",
            "storageClass": "STANDARD",
            "metageneration": "1",
            "projectNumber": "1",
            "timeCreated": "2026-01-01T00:00:00Z",
            "updated": "2026-01-01T00:00:00Z",
        }

    def _list(self, bucket):
        q = self.query
        prefix, sep = q.get("prefix", ""), q.get("delimiter", "")
        after = max(q.get("startOffset", ""), q.get("pageToken", ""))
        with _LOCK:
            found = sorted(
                (n, o)
                for (b, n), o in self.server.objects.items()
                if b == bucket
                and n.startswith(prefix)
                and n >= after
                and (not q.get("endOffset") or n < q["endOffset"])
            )
        items, folders, most, token = [], [], int(q.get("maxResults") or 1000), None
        for name, o in found:
            rest = name[len(prefix) :]
            folder = prefix + rest.split(sep)[0] + sep if sep and sep in rest else None
            if folder and folder in folders:
                continue
            if len(items) + len(folders) == most:
                token = name
                break
            if folder:
                folders.append(folder)
            if not folder or (
                q.get("includeTrailingDelimiter") == "true" and folder == name
            ):
                items.append(self._about(bucket, name, o))
        out = {"kind": "storage#objects", "items": items, "prefixes": folders}
        self._send(
            200,
            {k: v for k, v in out.items() if v}
            | ({"nextPageToken": token} if token else {}),
        )

    def _object(self, bucket, name):
        with _LOCK:
            o = self.server.objects.get((bucket, name))
            code = self._mismatch(o)
            if self.command == "DELETE" and o and not code:
                del self.server.objects[bucket, name]
                return self._send(204)
        if not o:
            return self._fail(404, f"No such object: {bucket}/{name}")
        if code:
            return self._fail(code, "conditionNotMet")
        if self.query.get("alt") != "media":
            return self._send(200, self._about(bucket, name, o))
        about = {
            "X-Goog-Generation": o.generation,
            "X-Goog-Metageneration": 1,
            "X-Goog-Hash": f"md5={o.md5}",
            "ETag": o.md5,
            "X-Goog-Stored-Content-Length": len(o.data),
        }
        data, size = o.data, len(o.data)
        if m := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(m[1]) if m[1] else max(0, size - int(m[2]))
            last = min(int(m[2]), size - 1) if m[1] and m[2] else size - 1
            if first >= size:
                return self._fail(416, "range")
            about["Content-Range"] = f"bytes {first}-{last}/{size}"
            return self._send(206, data[first : last + 1], o.kind, **about)
        return self._send(200, data, o.kind, **about)

    def _copy(self, bucket, name, to_bucket, to_name, move=False):
        with _LOCK:
            o = self.server.objects.get((bucket, name))
            if not o:
                return self._fail(404, f"No such object: {bucket}/{name}")
            new = self.server.objects[to_bucket, to_name] = _Object(o.data, o.kind)
            if move:
                del self.server.objects[bucket, name]
        about = self._about(to_bucket, to_name, new)
        if "rewriteTo" in self.path:
            about = {
                "kind": "storage#rewriteResponse",
                "done": True,
                "resource": about,
                "objectSize": about["size"],
                "totalBytesRewritten": about["size"],
            }
        self._send(200, about)

    def _upload(self, bucket, body):
        q, kind = self.query, self.headers.get("Content-Type", "")
        if "upload_id" in q:
            return self._part(bucket, q["upload_id"], body)
        if q["uploadType"] == "media":
            return self._put(bucket, q["name"], body, kind)
        if q["uploadType"] == "multipart":
            mark = b"--" + re.search(r'boundary="?([^";]+)', kind)[1].encode()
            body = body[body.index(mark) :]
            chunks = re.split(rb"\r?\n?" + re.escape(mark) + rb"(?:\r?\n|--)", body)[
                1:3
            ]
            (_, about), (head, data) = (
                re.split(rb"\r?\n\r?\n", c, maxsplit=1) for c in chunks
            )
            about = json.loads(about)
            inner = re.search(rb"(?i)content-type: *([^\r\n]+)", head)
            return self._put(
                bucket,
                q.get("name") or about["name"],
                data,
                about.get("contentType") or (inner[1].decode() if inner else ""),
            )
        about = json.loads(body) if body.strip() else {}
        with _LOCK:
            key = str(len(self.server.uploads))
            self.server.uploads[key] = [
                q.get("name") or about["name"],
                b"",
                self.headers.get("X-Upload-Content-Type", ""),
            ]
        where = f"http://{self.headers['Host']}{self.path}&upload_id={key}"
        self._send(200, {}, Location=where)

    def _part(self, bucket, key, body):
        upload = self.server.uploads[key]
        span = re.fullmatch(
            r"bytes (\*|(\d+)-(\d+))/(\*|\d+)", self.headers.get("Content-Range", "")
        )
        if span and span[2]:
            upload[1] = upload[1][: int(span[2])] + body
        elif not span:
            upload[1] += body
        if not span or (span[4] != "*" and len(upload[1]) >= int(span[4])):
            return self._put(bucket, upload[0], upload[1], upload[2])
        about = {"Range": f"bytes=0-{len(upload[1]) - 1}"} if upload[1] else {}
        return self._send(308, b"", **about)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):  # tensorstore drops connections.
        pass


def server(port=0):
    made = _Server(("127.0.0.1", port), _Handler)
    made.objects, made.uploads, made.requests = {}, {}, []
    return made


@contextlib.contextmanager
def serving(port=0):
    made = server(port)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield made, f"http://127.0.0.1:{made.server_address[1]}"
    finally:
        made.shutdown()
        made.server_close()


if __name__ == "__main__":
    server(int(sys.argv[1]) if len(sys.argv) > 1 else 9023).serve_forever()
