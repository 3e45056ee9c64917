"""Changed inputs for all that reads what others sent, and for every method of a server; always the same ones."""

import grpc
import pytest
from fuzzing import file_targets, operator_targets, rpc_targets, run

from keylock.v1 import admin_pb2, admin_pb2_grpc
from keylock.v1 import explanation_pb2 as pb

# benchmarks/fuzz.py gives each of them many more.
INPUTS, SECONDS = 150, 3.0


@pytest.fixture(scope="module")
def files(vendor, tmp_path_factory):
    made = file_targets(tmp_path_factory.mktemp("fuzz"), vendor.bundle.read_bytes(), vendor.signing_key)
    return {target.name: target for target in made}


FILES = (
    "license", "license shown", "license file", "access token", "offline license", "receipt", "header of a receipt",
    "certificate of a receipt key", "receipt keys taken back", "entry of the audit log", "checkpoint",
    "proof of inclusion", "proof of consistency", "signed audit", "JWKS", "private key in PEM", "key of a recipient",
    "bundle", "image", "TIFF image", "scale of an image", "DICOM image", "npz", "map", "boxes", "class name",
    "answer with an explanation", "answer about a model", "answer about a license", "answer about use",
)  # fmt: skip


def test_everything_that_reads_is_in_the_list(files):
    assert set(files) - {"DICOM image"} == set(FILES) - {"DICOM image"}


@pytest.mark.parametrize("name", FILES)
def test_changed_file_is_read_or_refused(files, name):
    if name not in files:
        pytest.skip("pydicom is not installed")
    found = run(files[name], seed=1, inputs=INPUTS, seconds=SECONDS)
    assert found.faults == []
    assert found.inputs


def test_changed_message_has_an_answer_or_a_refusal(calls, vendor):
    for target in rpc_targets(calls.channel, vendor.grant().token):
        found = run(target, seed=1, inputs=20, seconds=SECONDS)
        assert found.faults == [], target.name
        assert found.inputs
    # It goes on serving.
    assert calls.explanation.GetModel(pb.GetModelRequest(), timeout=20).model.name == "tiny"


def test_changed_message_of_an_operator_has_an_answer_or_a_refusal(start_server, tls_files, vendor):
    files = {"admin_certificate": "server.pem", "admin_key": "server.key", "admin_client_ca": "client.pem"}
    calls = start_server(admin_port=0, **{name: tls_files / file for name, file in files.items()})
    roots, key, chain = ((tls_files / name).read_bytes() for name in ("server.pem", "client.key", "client.pem"))
    shown = grpc.ssl_channel_credentials(roots, key, chain)
    with grpc.secure_channel(f"localhost:{calls.server.admin_port}", shown) as channel:
        for target in operator_targets(channel, vendor.grant().license.id):
            found = run(target, seed=1, inputs=20, seconds=SECONDS)
            assert found.faults == [], target.name
            assert found.inputs
        status = admin_pb2_grpc.AdminServiceStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=20)
    assert not status.draining
