#!/usr/bin/env bash
# tritonclient.grpc cannot read answers in one of the two forms that the inference protocol has.
#
# Versions: tritonclient 2.73.0 (with its extra grpc), numpy 2.4.6, Python 3.11. Date: 2026-11-30.
# One would guess: a client of the inference protocol reads the answers of any server that keeps to it. The protocol
#   lets the server choose: numbers in `contents` of each output (fp32_contents and so on), or all outputs as bytes in
#   `raw_output_contents`.
# What is true: as_numpy() knows raw bytes alone. Typed numbers are taken for none: a ValueError, "cannot reshape array
#   of size 0", although the message that the client holds has them. For typed text there is code, which NumPy 2 stops
#   with another ValueError. A request cannot say which form is wanted.
# Why our users meet it: keylock answers in the form of the question, and a server of one's own that answers in the
#   typed form, which stubs read without knowing how bytes are laid out, works with all clients but this one.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "tritonclient[grpc]==2.73.0" numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PY'
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc

LOGITS = np.array([[0.5, -1.5, 2.0]], np.float32)


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each model's name in another form."""

    def ModelInfer(self, request, context):
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        if request.model_name == "text":
            output = answer.outputs.add(name="logits", datatype="BYTES", shape=[1])
            output.contents.bytes_contents.append(b"cat")
            return answer
        output = answer.outputs.add(name="logits", datatype="FP32", shape=LOGITS.shape)
        if request.model_name == "raw":
            answer.raw_output_contents.append(LOGITS.tobytes())
        else:
            output.contents.fp32_contents.extend(LOGITS.ravel().tolist())
        return answer


server = grpc.server(ThreadPoolExecutor(2))
service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
client = InferenceServerClient(f"127.0.0.1:{port}")


def read(form):
    given = InferInput("image", [1, 3], "FP32")
    given.set_data_from_numpy(np.ones((1, 3), np.float32))
    result = client.infer(form, [given])
    contents = result.get_output("logits").contents
    print(f"{form}: typed values {[*contents.fp32_contents, *contents.bytes_contents]}, as_numpy ", end="")
    try:
        found = result.as_numpy("logits")
    except ValueError as error:
        found = str(error)
    print(f"gives {found.tolist()}" if isinstance(found, np.ndarray) else f"raises ValueError: {found.splitlines()[0]}")
    return found


assert np.array_equal(read("raw"), LOGITS)
text, typed = read("text"), read("typed")
client.close()
server.stop(None).wait()
assert isinstance(typed, str) and "cannot reshape array of size 0" in typed, "typed numbers are read now"
assert isinstance(text, str) and "copy" in text, "typed text is read now"
PY
echo "as described"
