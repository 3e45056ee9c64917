#!/usr/bin/env bash
# tritonclient.http writes into the dictionary of headers that it is given, and sends what it wrote with later requests.
#
# Versions: tritonclient 2.73.0 (with its extra http), numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: headers={"authorization": ...} is read, so that one dictionary serves all of a program's requests.
# What is true: infer() adds Inference-Header-Content-Length, Content-Encoding and Accept-Encoding to that very
#   dictionary, and a later request without binary data or without compression does not take them out. It then says that
#   its body is gzip while it is not, and that its JSON is as long as that of an earlier one; a server that keeps to the
#   protocol has to refuse it. Requests without any body, such as for readiness, carry them too. A copy for each call,
#   dict(headers), mends it.
# Why our users meet it: a license or a token travels in such a dictionary, which is made once. The first request goes
#   well, so that the server looks guilty of the second.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "tritonclient[http]==2.73.0" numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

SEEN = []


class Server(BaseHTTPRequestHandler):
    """Notes what requests say about their bodies, and answers as a model without outputs would."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body):
        said = {name.lower(): value for name, value in self.headers.items()}
        SEEN.append((said.get("inference-header-content-length"), said.get("content-encoding"), body))
        reply = json.dumps({"model_name": "one", "outputs": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = InferenceServerClient(f"127.0.0.1:{server.server_port}")


def ask(binary, headers, **options):
    """Ask with an image, and return what the request said of its body and what the body was."""
    given = InferInput("image", [1, 3], "FP32")
    given.set_data_from_numpy(np.ones((1, 3), np.float32), binary_data=binary)
    client.infer("one", [given], headers=headers, **options)
    return SEEN[-1]


headers = {"authorization": "a license"}
length, encoding, body = ask(True, headers, request_compression_algorithm="gzip")
print(f"first request, binary and gzip: JSON of {length} bytes, {encoding}, begins with {body[:2].hex()}")
assert length and encoding == "gzip" and body[:2] == b"\x1f\x8b"
print("the caller's dictionary:", headers)
assert set(headers) > {"authorization"}, "the dictionary is left alone now"
first, second = ask(False, headers), ask(False, {"authorization": "a license"})
for name, (length, encoding, body) in (("the same dictionary", first), ("a new dictionary", second)):
    json.loads(body)
    print(f"second request, JSON of {len(body)} bytes, {name}: says JSON of {length} bytes, encoding {encoding}")
assert second[:2] == (None, None), "a new dictionary is filled as well"
assert first[1] == "gzip", "the encoding is no longer kept"
assert first[0] is not None and int(first[0]) != len(first[2]), "the length is right now"
client.is_server_ready(headers=headers)
print(f"asking for readiness: says JSON of {SEEN[-1][0]} bytes, encoding {SEEN[-1][1]}, of a body that it has not")
assert SEEN[-1][1] == "gzip" and not SEEN[-1][2]
client.close()
server.shutdown()
PY
echo "as described"
