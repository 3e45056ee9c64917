"""The Open Inference Protocol over HTTP: tensors in JSON, or in binary form behind it.

The body is JSON, of which the header `Inference-Header-Content-Length` says how long it is where binary data follow.
Each tensor whose parameters have `binary_data_size` takes that many of the bytes, in the order of the inputs. Outputs
are binary where they ask for it (`binary_data`), or where the request does for all of them (`binary_data_output`).
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from keylock.inference import inference_pb2 as pb
from keylock_server.http.bodies import parse_json
from keylock_server.http.messages import dump
from keylock_server.services.tensors import split_bytes
from keylock_server.transport.statuses import RequestError

__all__ = ["LENGTH", "Wanted", "read_request", "write_answer"]

LENGTH: Final = b"inference-header-content-length"

_SIZE, _BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
_MAX_NUMBER: Final = 2**63


class Wanted(NamedTuple):
    """How the outputs are to travel.

    Attributes:
        all_binary: Whether in binary form, where they do not say it themselves.
        binary: What they say, by name.
    """

    all_binary: bool
    binary: Mapping[str, bool]


def read_request(
    body: bytes, headers: Mapping[bytes, bytes], *, model: str, version: str
) -> tuple[pb.ModelInferRequest, Wanted]:
    """Reads a request.

    Args:
        body: As it was sent.
        headers: Of the request.
        model: Name of the model in the path.
        version: Version in the path; empty where there is none.

    Raises:
        RequestError: If it is none.
    """
    text, rest = _split(body, headers)
    plain = _object(parse_json(text), "the body")
    _only(plain, ("id", "model_name", "model_version", "parameters", "inputs", "outputs"), "the body")
    parameters = _object(plain.get("parameters", {}), "parameters")
    all_binary = parameters.pop(_ALL_BINARY, False) is True
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=_text(plain.get("id", ""), "id"))
    _set_parameters(request, parameters, "parameters")
    contents = []
    for number, given in enumerate(_list(plain.get("inputs", []), "inputs")):
        content, rest = _read_input(request, given, rest, f"inputs[{number}]")
        contents.append(content)
    if rest:
        raise RequestError(400, f"{len(rest)} bytes follow the last tensor: make the sizes and the body agree")
    request.raw_input_contents.extend(contents)
    binary = {}
    for number, given in enumerate(_list(plain.get("outputs", []), "outputs")):
        where = f"outputs[{number}]"
        asked = _object(given, where)
        _only(asked, ("name", "parameters"), where)
        own = _object(asked.get("parameters", {}), f"{where}.parameters")
        output = request.outputs.add(name=_text(asked.get("name", ""), f"{where}.name"))
        binary[output.name] = own.pop(_BINARY, all_binary) is True
        _set_parameters(output, own, f"{where}.parameters")
    return request, Wanted(all_binary, binary)


def write_answer(answer: pb.ModelInferResponse, wanted: Wanted) -> tuple[bytes, int | None]:
    """Writes an answer.

    Args:
        answer: With its outputs in raw form.
        wanted: How they are to travel.

    Returns:
        The body, and the length of the JSON in it where binary data follow.
    """
    outputs, parts = [], []
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        written: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if wanted.binary.get(output.name, wanted.all_binary):
            written["parameters"] = {_SIZE: len(raw)}
            parts.append(raw)
        elif output.datatype == "BYTES":
            written["data"] = [element.decode("utf-8") for element in split_bytes(raw)]
        else:
            written["data"] = np.frombuffer(raw, "<f4").tolist()
        outputs.append(written)
    plain = {"model_name": answer.model_name, "model_version": answer.model_version, "outputs": outputs}
    text = dump({"id": answer.id, **plain} if answer.id else plain)
    return (b"".join([text, *parts]), len(text)) if parts else (text, None)


def _split(body: bytes, headers: Mapping[bytes, bytes]) -> tuple[bytes, memoryview]:
    said = headers.get(LENGTH)
    if said is None:
        return body, memoryview(b"")
    if not said.isdigit() or int(said) > len(body):
        raise RequestError(
            400, f"Inference-Header-Content-Length is not a length within the {len(body)} bytes of the body: correct it"
        )
    return body[: int(said)], memoryview(body)[int(said) :]


def _read_input(
    request: pb.ModelInferRequest,
    given: Any,  # noqa: ANN401
    rest: memoryview,
    where: str,
) -> tuple[bytes, memoryview]:
    """Adds an input to a request; returns its data in raw form, and the bytes that are left."""
    plain = _object(given, where)
    _only(plain, ("name", "datatype", "shape", "parameters", "data"), where)
    shape = plain.get("shape", [])
    if not isinstance(shape, list) or not all(
        type(side) is int and -_MAX_NUMBER <= side < _MAX_NUMBER for side in shape
    ):
        raise _wrong(f"{where}.shape", "is no list of whole numbers")
    parameters = _object(plain.get("parameters", {}), f"{where}.parameters")
    size = parameters.pop(_SIZE, None)
    datatype = _text(plain.get("datatype", ""), f"{where}.datatype")
    tensor = request.inputs.add(name=_text(plain.get("name", ""), f"{where}.name"), datatype=datatype, shape=shape)
    _set_parameters(tensor, parameters, f"{where}.parameters")
    if (size is None) == ("data" not in plain):
        raise _wrong(where, f"has data in JSON and {_SIZE}, or neither: send one of them")
    if size is None:
        return _raw(plain["data"], datatype, shape, f"{where}.data"), rest
    if type(size) is not int or not 0 <= size <= len(rest):
        raise _wrong(f"{where}.parameters.{_SIZE}", f"does not fit the {len(rest)} bytes that are left of the body")
    return bytes(rest[:size]), rest[size:]


def _raw(data: Any, datatype: str, shape: list[int], where: str) -> bytes:  # noqa: ANN401
    """Returns data of JSON, flat or nested as the shape has it, in raw form."""
    if not isinstance(data, list):
        raise _wrong(where, "is no list")
    if datatype == "BYTES":
        return b"".join(len(file).to_bytes(4, "little") + file for file in _files(data, where))
    try:
        values = np.asarray(data)
    except ValueError:
        raise _wrong(where, "is nested unevenly") from None
    # An empty list has the type of floats, and its size is found wrong later on.
    if values.dtype.kind not in "iuf":
        raise _wrong(where, "has values that are no numbers")
    if values.ndim > 1 and list(values.shape) != shape:
        raise _wrong(where, f"has the shape {list(values.shape)[:8]}, and shape says {shape[:8]}")
    if datatype == "UINT8":
        if values.size and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 255):
            raise _wrong(where, "has values that are no whole numbers from 0 to 255")
        return values.astype(np.uint8).tobytes()
    if datatype != "FP32":  # The service refuses it by the name of the input.
        return b""
    with np.errstate(over="ignore"):
        floats = values.astype("<f4")
    if not np.isfinite(floats).all():
        raise _wrong(where, "has values that are too large for FP32")
    return floats.tobytes()


def _files(data: list[Any], where: str) -> list[bytes]:
    files = []
    for number, one in enumerate(data):
        text = one[0] if isinstance(one, list) and len(one) == 1 else one
        try:
            files.append(base64.b64decode(text if isinstance(text, str) else "?", validate=True))
        except (binascii.Error, ValueError):
            raise _wrong(f"{where}[{number}]", "is no Base64: files travel in it, or in binary form") from None
    return files


def _set_parameters(owner: Any, parameters: Mapping[str, Any], where: str) -> None:  # noqa: ANN401
    for name, value in parameters.items():
        if isinstance(value, bool):
            owner.parameters[name].bool_param = value
        elif isinstance(value, int) and -_MAX_NUMBER <= value < _MAX_NUMBER:
            owner.parameters[name].int64_param = value
        elif isinstance(value, float):
            owner.parameters[name].double_param = value
        elif isinstance(value, str):
            owner.parameters[name].string_param = value
        else:
            raise _wrong(where, f"has {name[:64]!r}, which is no text, number or truth value")


def _object(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        raise _wrong(where, "is no JSON object")
    return dict(value)


def _list(value: Any, where: str) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list):
        raise _wrong(where, "is no list")
    return value


def _text(value: Any, where: str) -> str:  # noqa: ANN401
    if not isinstance(value, str):
        raise _wrong(where, "is no text")
    return value


def _only(plain: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in plain:
        if name not in known:
            raise _wrong(where, f"has {name[:64]!r}, which is none of {', '.join(known)}")


def _wrong(where: str, why: str) -> RequestError:
    field = None if where == "the body" else where
    return RequestError(400, f"{where} {why}: compare with docs/http.md", field=field)
