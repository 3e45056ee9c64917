"""Operators: mutual TLS and nothing else, on a port of their own; what they see, and what they do to licenses."""

import json
import os
import re
import subprocess
import sys
import threading
from datetime import timedelta
from types import SimpleNamespace

import grpc
import pytest
from support import refusal, wait_for

from keylock import __version__
from keylock.cli import main
from keylock.errors import InputError, ServiceError
from keylock.store import LicenseStore
from keylock.v1 import admin_pb2 as pb
from keylock.v1 import admin_pb2_grpc
from keylock_server import ServerSettings


@pytest.fixture(scope="module")
def admin_files(tls_files):
    return {
        "admin_port": 0,
        "admin_certificate": tls_files / "server.pem",
        "admin_key": tls_files / "server.key",
        "admin_client_ca": tls_files / "client.pem",
    }


@pytest.fixture(scope="module")
def administered(start_server, admin_files):
    return start_server(**admin_files)


def operator(calls, tls_files, name="client"):
    """A channel of somebody who shows a certificate, or none."""
    roots = (tls_files / "server.pem").read_bytes()
    shown = () if name is None else [(tls_files / f"{name}.{suffix}").read_bytes() for suffix in ("key", "pem")]
    return grpc.secure_channel(f"localhost:{calls.server.admin_port}", grpc.ssl_channel_credentials(roots, *shown))


@pytest.fixture
def admin(administered, tls_files):
    with operator(administered, tls_files) as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)


def refused(call):
    code, details = refusal(call)
    return code.name, details["ErrorInfo"].reason


def test_the_status_is_that_of_the_server(admin, administered, vendor):
    status = admin.GetStatus(pb.GetStatusRequest(), timeout=10)
    assert (status.version, status.model.name) == (__version__, "tiny")
    assert status.model.digest == vendor.manifest.model_digest
    assert (list(status.explainers), status.key_id) == (["brightness", "coarse"], vendor.manifest.key.id)
    assert (status.store, status.canary, dict(status.problems)) == ("sqlite", False, {})
    assert (status.running_calls, status.draining) == (0, False)
    assert list(status.providers) == list(administered.server.model.providers)
    guard, settings = status.query_guard, administered.server.parts.settings
    assert (guard.mode, guard.refused) == ("count", 0)
    assert (guard.memory_bytes, guard.window_s) == (settings.query_guard_memory_bytes, settings.query_guard_window_s)
    assert admin.GetStatus(pb.GetStatusRequest(), timeout=10).uptime_s > status.uptime_s > 0


def test_whoever_is_no_operator_gets_nothing(administered, tls_files):
    for name in (None, "thief"):
        with operator(administered, tls_files, name) as channel, pytest.raises(grpc.RpcError) as caught:
            admin_pb2_grpc.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(f"localhost:{administered.server.admin_port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            admin_pb2_grpc.AdminServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_the_public_port_has_no_admin_service(administered):
    stub = admin_pb2_grpc.AdminServiceStub(administered.channel)
    methods = pb.DESCRIPTOR.services_by_name["AdminService"].methods
    assert len(methods) == 6
    for method in methods:
        request = getattr(pb, method.input_type.name)()
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method.name)(request, timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_without_settings_there_is_no_port(calls):
    assert calls.server.admin_port is None


@pytest.mark.parametrize("missing", ["admin_port", "admin_certificate", "admin_key", "admin_client_ca"])
def test_operators_are_never_served_with_less_than_all_files(admin_files, missing):
    given = {name: value for name, value in admin_files.items() if name != missing}
    with pytest.raises(InputError, match=f"^{missing}= must be given too"):
        ServerSettings.load(bundle="x", **given)


def test_the_port_is_another_than_the_public_one(admin_files):
    with pytest.raises(InputError, match="choose another"):
        ServerSettings.load(bundle="x", **(admin_files | {"port": 9000, "admin_port": 9000}))


def test_files_that_do_not_fit_end_the_start(start_server, admin_files, tls_files):
    with pytest.raises(ServiceError, match="belong together"):
        start_server(**(admin_files | {"admin_key": tls_files / "client.key"}))


def test_a_license_is_suspended_reinstated_and_revoked(admin, administered, vendor, tiny, server_log):
    granted, image = vendor.grant(), tiny.tensor_image(tiny.images(1)[0])
    explain = lambda: administered.explain(image, token=granted.token)  # noqa: E731
    assert explain().results[0].keyed
    state = admin.SuspendLicense(pb.SuspendLicenseRequest(license_id=granted.id, why="unpaid")).state
    assert (state.status, state.license.customer, state.HasField("suspended_at")) == ("suspended", "Acme", True)
    assert refused(explain) == ("UNAUTHENTICATED", "LICENSE_SUSPENDED")
    assert admin.ReinstateLicense(pb.ReinstateLicenseRequest(license_id=granted.id)).state.status == "active"
    assert explain().results[0].keyed
    assert admin.RevokeLicense(pb.RevokeLicenseRequest(license_id=granted.id)).state.status == "revoked"
    assert refused(explain) == ("UNAUTHENTICATED", "LICENSE_REVOKED")
    assert f"the operator 'client' revoked the license {granted.id!r}" in server_log.text
    used = admin.GetUsage(pb.AdminServiceGetUsageRequest(license_id=granted.id))
    assert {window.used for window in used.quotas} == {2}


def test_what_an_operator_changes_is_logged_though_the_operator_goes_away(admin, vendor, server_log, monkeypatch):
    granted, reached, go = vendor.grant(), threading.Event(), threading.Event()
    revoke = LicenseStore.revoke

    def slow(*arguments, **options):
        reached.set()
        assert go.wait(20)
        return revoke(*arguments, **options)

    monkeypatch.setattr(LicenseStore, "revoke", slow)
    call = admin.RevokeLicense.future(pb.RevokeLicenseRequest(license_id=granted.id), timeout=20)
    assert reached.wait(20)
    call.cancel()
    wait_for(lambda: "/RevokeLicense CANCELLED" in server_log.text)
    go.set()
    wait_for(lambda: vendor.store.get(granted.id).revoked_at)
    wait_for(lambda: f"the operator 'client' revoked the license {granted.id!r}" in server_log.text)


def test_what_was_issued_before_a_time_is_revoked(admin, administered, vendor, tiny):
    granted, image = vendor.grant(), tiny.tensor_image(tiny.images(1)[0])
    request = pb.RevokeLicenseRequest(license_id=granted.id)
    request.issued_before.FromDatetime(tiny.now - timedelta(hours=1))
    answer = admin.RevokeLicense(request)
    assert (answer.licenses, answer.state.HasField("refuse_before")) == (1, True)
    assert refused(lambda: administered.explain(image, token=granted.token)) == ("UNAUTHENTICATED", "LICENSE_REVOKED")


def test_a_token_is_revoked(admin, vendor):
    admin.RevokeLicense(pb.RevokeLicenseRequest(token_id="tok_1"))
    granted = vendor.grant()
    assert vendor.store.check(granted.id, token_id="tok_2").license.id == granted.id
    with pytest.raises(Exception, match="revoked"):
        vendor.store.check(granted.id, token_id="tok_1")


def test_a_token_in_the_place_of_its_id_is_refused_and_not_logged(admin, vendor, server_log):
    token = vendor.grant().token
    code, details = refusal(lambda: admin.RevokeLicense(pb.RevokeLicenseRequest(token_id=token)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "token_id"
    assert token[:60] not in server_log.text + str(details)


def test_wrong_requests_are_refused(admin, vendor):
    granted = vendor.grant()
    everything = pb.RevokeLicenseRequest()
    everything.issued_before.FromSeconds(1_600_000_000)
    for request in (
        pb.RevokeLicenseRequest(),
        pb.RevokeLicenseRequest(all_licenses=True),
        pb.RevokeLicenseRequest(license_id=granted.id, token_id="t"),
        pb.RevokeLicenseRequest(license_id=granted.id, all_licenses=True),
        pb.RevokeLicenseRequest(license_id=granted.id, why="x" * 201),
        everything,
    ):
        assert refused(lambda request=request: admin.RevokeLicense(request))[0] == "INVALID_ARGUMENT"
    assert vendor.store.get(granted.id).revoked_at is None
    for call in (
        lambda: admin.SuspendLicense(pb.SuspendLicenseRequest(license_id="lic_none")),
        lambda: admin.RevokeLicense(pb.RevokeLicenseRequest(license_id="lic_none")),
        lambda: admin.GetUsage(pb.AdminServiceGetUsageRequest(license_id="lic_none")),
        lambda: admin.ReinstateLicense(pb.ReinstateLicenseRequest()),
    ):
        assert refused(call)[0] == "NOT_FOUND"


def test_without_a_store_there_are_no_licenses(start_server, admin_files, tls_files):
    calls = start_server(license_store=None, **admin_files)
    with operator(calls, tls_files) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        assert stub.GetStatus(pb.GetStatusRequest()).store == ""
        call = lambda: stub.SuspendLicense(pb.SuspendLicenseRequest(license_id="x"))  # noqa: E731
        assert refused(call) == ("FAILED_PRECONDITION", "NO_STORE")


def test_draining_stops_the_server(start_server, admin_files, tls_files):
    calls = start_server(drain_s=7, notice_s=0.5, **admin_files)
    stopped = calls.loop_thread.submit(calls.server.wait())
    told = calls.loop_thread.submit(calls.server.wait_for_stop())
    with operator(calls, tls_files) as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).Drain(pb.DrainRequest())
    assert (answer.running_calls, answer.drain_s) == (0, 7.5)
    told.result(timeout=10)
    stopped.result(timeout=10)
    assert calls.server.is_draining()


def test_draining_ends_the_process_and_its_spans_are_exported(vendor, admin_files, tls_files, tmp_path):
    flags = [word for name, value in admin_files.items() for word in ("--" + name.replace("_", "-"), str(value))]
    keys = ["--key-file", str(vendor.key_file), "--issuer", str(vendor.issuer_file), "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "keylock", "serve", str(vendor.bundle), *keys, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HOME": str(tmp_path), "OTEL_TRACES_EXPORTER": "console"},
    )
    try:
        announced = ""
        while not announced.endswith("\n}\n") and process.poll() is None:
            announced += process.stdout.readline()
        server = SimpleNamespace(admin_port=json.loads(announced)["admin_port"])
        with operator(SimpleNamespace(server=server), tls_files) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            stub.Drain(pb.DrainRequest(), timeout=10, metadata=[("x-request-id", "going-down")])
        output, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "the operator 'client' drains" in log
    assert "keylock_server going-down: the operator" in log
    assert '"name": "keylock.v1.AdminService/Drain"' in output
    assert '"service.name": "keylock"' in output


@pytest.fixture
def operate(administered, tls_files, capsys):
    """Runs `keylock admin ...` as an operator, or as somebody else, and returns exit code, answer and notes."""

    def run(*arguments, name="client", target=None):
        files = ["--ca", tls_files / "server.pem"]
        files += ["--certificate", tls_files / f"{name}.pem", "--key", tls_files / f"{name}.key"]
        server = ["--server", target or f"localhost:{administered.server.admin_port}"]
        code = main(["admin", *arguments, *server, *map(str, files)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_command_shows_the_status(operate, vendor):
    code, out, err = operate("status", "--json")
    assert (code, err) == (0, "")
    status = json.loads(out)
    assert (status["version"], status["models"][0]["model"]["digest"]) == (__version__, vendor.manifest.model_digest)
    code, out, err = operate("status")
    assert code == 0, err
    assert vendor.manifest.model_digest in out
    assert "problems" in out
    assert re.search(
        r"query guard +count: \d+ images, \d+ asked again, \d+ near copies, 0 images would have been refused", out
    )


def test_command_suspends_reinstates_and_revokes(operate, vendor, administered, tiny):
    license = vendor.grant(quota={"total": 5})
    image = tiny.tensor_image(tiny.images(1)[0])

    def reason():
        return refused(lambda: administered.explain(image, token=license.token))[1]

    administered.explain(image, token=license.token)
    code, out, err = operate("usage", license.id)
    assert code == 0, err
    assert out.split()[-3:] == ["total", "1", "5"]
    assert "suspended" in operate("suspend", license.id, "--why", "unpaid")[1]
    assert reason() == "LICENSE_SUSPENDED"
    assert "active" in operate("reinstate", license.id)[1]
    assert administered.explain(image, token=license.token).results[0].keyed
    assert json.loads(operate("revoke", license.id, "--json")[1])["state"]["status"] == "revoked"
    assert reason() == "LICENSE_REVOKED"


def test_command_revokes_by_token_and_by_time(operate, vendor):
    license = vendor.grant()
    assert operate("revoke", "--token", "tok_1")[1] == "tok_1 is revoked\n"
    _, out, _ = operate("revoke", license.id, "--issued-before", "2026-11-01")
    assert out.endswith("is revoked, for 1 licenses\n")
    # That all licenses are meant must be said.
    code, out, err = operate("revoke", "--issued-before", "2026-11-01")
    assert (code, out) == (3, "")
    assert "say what to revoke" in err


def test_command_names_what_is_wrong(operate, tls_files, capsys):
    code, _, err = operate("suspend", "lic_nobody")
    assert code == 3, err
    assert "lic_nobody" in err
    code, _, err = operate("status", "--timeout", "3", name="thief")
    assert code == 7, err
    assert "does not take the one it was given: give one that it trusts with --certificate" in err
    assert main(["admin", "status", "--ca", str(tls_files / "server.pem")]) == 3
    assert "--certificate, --key" in capsys.readouterr().err


def test_command_drains_a_server(start_server, admin_files, operate, loop_thread):
    calls = start_server(**admin_files)
    code, out, err = operate("drain", target=f"localhost:{calls.server.admin_port}")
    assert code == 0, err
    assert "draining: 0 calls" in out
    loop_thread.run(calls.server.wait())
