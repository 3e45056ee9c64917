"""An object store that speaks as much of S3 as reading takes: list, look at and get objects. Anybody may."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Mapping[str, bytes]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if "list-type" in parse_qs(asked.query):
            self._list(parse_qs(asked.query).get("prefix", [""])[0])
        else:
            self._answer(body=True)

    def _list(self, prefix: str) -> None:
        names = [name for name in sorted(self.objects) if name.startswith(prefix)]
        found = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(self.objects[name])}</Size>"
            "<LastModified>2026-11-30T00:00:00.000Z</LastModified></Contents>"
            for name in names
        )
        about = f"<Name>b</Name><KeyCount>{len(names)}</KeyCount><IsTruncated>false</IsTruncated>"
        text = f"<ListBucketResult>{about}{found}</ListBucketResult>"
        self._send(200, text.encode(), {"Content-Type": "application/xml"})

    def _answer(self, *, body: bool) -> None:
        # The bucket stands first in the path.
        name = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        data = self.objects.get(name)
        if data is None:
            self._send(404, b"", {})
            return
        headers, status = {"Last-Modified": "Mon, 30 Nov 2026 00:00:00 GMT"}, 200
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            whole = len(data)
            data, status = data[int(first) : int(last) + 1], 206
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{whole}"
        self._send(status, data, headers, body=body)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def object_store(objects: Mapping[str, bytes]) -> Iterator[str]:
    """Serves objects in every bucket; yields `host:port`."""
    handler = type("Handler", (_Handler,), {"objects": objects})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
