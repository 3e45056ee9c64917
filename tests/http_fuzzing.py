"""Changed inputs for a server that speaks HTTP: bodies of every kind, queries, and whole requests as bytes.

What must come of them is said in `fuzzing.py`: an answer, or a refusal that says why, in the form of the path.
"""

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from fuzzing import HANG_S, RefusedError, Target, public_requests
from google.protobuf import json_format

from keylock.v1 import explanation_pb2 as pb

__all__ = ["http_targets"]

_SILENCE_S = 0.5


@contextmanager
def http_targets(port: int, token: str) -> Iterator[list[Target]]:
    """Gives every way in which a server is asked over HTTP, with a license that is good."""
    asking = _Asking(port, token)
    try:
        yield [*_rpcs(asking), *_own(asking), *_tensors(asking), *_raw(asking, token)]
    finally:
        asking.close()


def _rpcs(asking: "_Asking") -> list[Target]:
    """Every RPC by its own name."""
    targets = []
    for name, messages in public_requests().items():
        if not name.startswith(("keylock.", "inference.")):
            continue
        for media, bodies in (
            ("application/x-protobuf", [one.SerializeToString() for one in messages]),
            ("application/json", [json_format.MessageToJson(one).encode() for one in messages]),
        ):
            read = asking.reader("POST", f"/{name}", {"Content-Type": media})
            targets.append(Target(f"http {name}, {media.partition('/')[2]}", read, [], bodies))
    return targets


def _own(asking: "_Asking") -> list[Target]:
    """The paths of keylock itself."""
    explain, again = public_requests()["keylock.v1.ExplanationService/Explain"]
    assert isinstance(again, pb.ExplainRequest)
    plain, picture = json_format.MessageToJson(explain).encode(), again.images[0].encoded
    as_text = json.dumps({"images": [json_format.MessageToDict(again)["images"][0]["encoded"]]}).encode()
    as_json, as_picture = {"Content-Type": "application/json"}, {"Content-Type": "image/png"}
    query = (
        b"explainer=brightness&target_index=1&prediction=PREDICTION_KIND_PUBLIC&map_dtype=DATA_TYPE_UINT8&maps=lists"
    )

    def with_query(data: bytes) -> object:
        quoted = "".join(chr(byte) if 33 <= byte < 127 and byte != 35 else f"%{byte:02x}" for byte in data)
        return asking.ask("POST", f"/v1/explain?{quoted}", picture, as_picture)

    return [
        Target("http explain, json", asking.reader("POST", "/v1/explain?maps=lists", as_json), [], [plain, as_text]),
        Target("http explain, picture", asking.reader("POST", "/v1/explain", as_picture), [], [picture]),
        Target("http explain, query", with_query, [], [query, b"request_id=one&model_name=tiny"]),
        Target("http estimate", asking.reader("POST", "/v1/estimate", as_json), [], [b'{"images": 3}']),
        Target("http token", asking.reader("POST", "/v1/token", as_json), [], [b'{"lifetime_s": 300}']),
        Target("http index", asking.reader("POST", "/v2/repository/index", as_json), [], [b'{"ready": true}']),
    ]


def _tensors(asking: "_Asking") -> list[Target]:
    """Predictions of the Open Inference Protocol, in JSON and in binary form behind it."""
    data = np.zeros((1, 3, 8, 8), np.float32)
    about = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8]}
    in_json = json.dumps({"id": "one", "inputs": [{**about, "data": data.tolist()}]}).encode()
    wanted = [{"name": "logits", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [{**about, "parameters": {"binary_data_size": data.nbytes}}], "outputs": wanted})
    path = "/v2/models/tiny/infer"

    def binary(content: bytes) -> object:
        told = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return asking.ask("POST", path, content, told)

    return [
        Target("http infer, json", asking.reader("POST", path, {"Content-Type": "application/json"}), [], [in_json]),
        Target("http infer, binary", binary, [], [head.encode() + data.tobytes()]),
    ]


def _raw(asking: "_Asking", token: str) -> list[Target]:
    """Whole requests."""
    body = b'{"images": 3}'
    head = b"POST /v1/estimate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    good = [
        b"GET /v1/usage HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token.encode() + b"\r\n\r\n",
        head + b"Content-Length: 13\r\n\r\n" + body,
        head + b"Transfer-Encoding: chunked\r\n\r\nd\r\n" + body + b"\r\n0\r\n\r\n",
        head + b"Expect: 100-continue\r\nContent-Length: 13\r\n\r\n" + body,
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    return [Target("http request", asking.raw, [], good)]


class _Asking:
    """Asks over a connection that stays while it can."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def reader(self, method: str, path: str, headers: Mapping[str, str]) -> Any:
        return lambda data: self.ask(method, path, data, headers)

    def ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> object:
        """Asks, and returns the body of a good answer."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=HANG_S - 1)
        try:
            told = {"Authorization": f"Bearer {self._token}", **headers}
            self._connection.request(method, path, body, told)
            answer = self._connection.getresponse()
            content = answer.read()
        except BaseException:
            self.close()
            self._connection = None
            raise
        if answer.getheader("connection") == "close":
            self._connection.close()
        return _judge(answer.status, answer.getheader("content-type", ""), content)

    def raw(self, data: bytes) -> object:
        """Sends bytes, and looks at the first answer; one that is not whole is waited for a moment."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=_SILENCE_S) as connection:
            found = b""
            try:
                connection.sendall(data)
                while part := connection.recv(65536):
                    found += part
                    head, _, body = found.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
                    lines = head.decode("ascii").lower().split("\r\n")
                    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
                    if "content-length" in headers and len(body) >= (length := int(headers["content-length"])):
                        return _judge(int(lines[0].split()[1]), headers["content-type"], body[:length])
            except (TimeoutError, ConnectionError):
                pass
        assert not found.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""), f"half an answer: {found[:200]!r}"
        raise RefusedError("no answer")


def _judge(status: int, media: str, content: bytes) -> object:
    if status == 200:
        return content
    problem = json.loads(content)
    assert status not in (500, 504), f"the server answers {status}: {problem}"
    if media == "application/problem+json":
        assert (problem["status"], bool(problem["detail"])) == (status, True), problem
    else:
        # The form of the Open Inference Protocol.
        assert media == "application/json", media
        assert problem.get("error") or problem.get("ready") is False, problem
    raise RefusedError(f"{status} {problem.get('reason', '')}".strip())
