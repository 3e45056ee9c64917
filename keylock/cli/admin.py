"""`keylock admin`: what operators ask of a running server, on its admin port, with a certificate of their own.

Whether a server is ready anybody may ask, on the port that everybody calls.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keylock.cli._connection import TlsCaOption, TlsOption
from keylock.cli._console import JsonOption, new_app, print_json, print_pairs, print_table
from keylock.cli._terms import UnpaidOption, parse_date

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from keylock.v1 import admin_pb2
    from keylock_client import AdminClient

__all__ = ["app"]

app = new_app("Ask a running server how it is, take licenses back, drain it; with an operator's certificate.")

_PUBLIC = "The port that everybody calls. [env: KEYLOCK_TARGET; localhost:8470]"

ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", help="The admin port. [env: KEYLOCK_ADMIN_TARGET; localhost:8471]"),
]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Who signed the server's certificate, PEM. [env: KEYLOCK_ADMIN_CA]"),
]
CertificateOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Your own certificate, PEM. [env: KEYLOCK_ADMIN_CERTIFICATE]"),
]
KeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Its private key, PEM. [env: KEYLOCK_ADMIN_KEY]")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Timeout of the request.")]
LicenseArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the license.")]
WhyOption = Annotated[str, typer.Option(metavar="TEXT", help="A note for the vendor; the customer never sees it.")]

_TIMEOUT_S = 30.0


@app.command("status")
def admin_status(
    server: ServerOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    timeout_s: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show what the server serves, how it is and what runs."""
    with _connect(server, ca, certificate, key, timeout_s) as client:
        status = client.status()
    if as_json:
        print_json(_plain(status))
        return
    pairs: list[tuple[str, object]] = [("version", status.version), ("up for", f"{status.uptime_s:.0f} s")]
    for one in status.models:
        kind = f"key {one.key_id}" if one.key_id else "no key"
        pairs.append(("model", f"{one.model.name} {one.model.digest}, {kind}, {', '.join(one.explainers)}"))
    pairs += [
        ("providers", ", ".join(status.providers)),
        ("store", status.store or "none"),
        ("calls that run", status.running_calls),
        ("images that wait", status.pending),
        ("draining", "yes" if status.draining else "no"),
        ("query guard", _describe_guard(status.query_guard)),
    ]
    pairs += [(f"problem: {name}", what) for name, what in sorted(status.problems.items())] or [("problems", "none")]
    print_pairs(pairs)


def _describe_guard(guard: "admin_pb2.QueryGuard") -> str:
    if guard.mode in ("", "off"):
        return "off"
    refused = "images would have been refused" if guard.mode == "count" else "images refused"
    return (
        f"{guard.mode}: {guard.images} images, {guard.identical} asked again, {guard.near_copies} near copies, "
        f"{guard.refused} {refused}; {guard.pictures} pictures of the last {guard.window_s / 60:g} minutes in "
        f"{guard.memory_bytes / 2**20:.0f} MiB"
    )


@app.command("ready")
def admin_ready(
    server: Annotated[str | None, typer.Option("--server", metavar="HOST:PORT", help=_PUBLIC)] = None,
    service: Annotated[
        str, typer.Option(metavar="NAME", help="One service, such as keylock.v1.ExplanationService. [the whole server]")
    ] = "",
    wait_s: Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="Go on asking for so long.")] = 0.0,
    tls: TlsOption = None,
    tls_ca: TlsCaOption = None,
    certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", metavar="FILE", help="Your own certificate, where one is asked.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key, PEM.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Timeout of a question.")] = 5.0,
) -> None:
    """End with code 0 where the server answers calls, and with 7 where it does not: for probes, and for scripts."""
    from keylock.errors import InputError
    from keylock_client import Tls, wait_until_ready

    if tls is False and (tls_ca or certificate or key):
        raise InputError("--no-tls and the files of TLS exclude each other: leave one out")
    files = Tls(ca=tls_ca, certificate=certificate, private_key=key) if tls_ca or certificate or key else tls
    address = wait_until_ready(server, service=service, tls=files, timeout_s=timeout_s, wait_s=wait_s)
    typer.echo(f"{service or 'the server'} at {address} is ready")


@app.command("usage")
def admin_usage(
    license_id: LicenseArgument,
    server: ServerOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    timeout_s: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show what a license has used."""
    with _connect(server, ca, certificate, key, timeout_s) as client:
        answer = client.usage(license_id)
    if as_json:
        print_json(_plain(answer))
        return
    rows = [(one.period, one.used, one.limit if one.HasField("limit") else "none") for one in answer.quotas]
    if answer.HasField("disclosures"):
        told, terms = answer.disclosures, answer.disclosures.terms
        rows += [
            ("disclosures, day", told.today, terms.per_day),
            ("disclosures, total", told.total, terms.total if terms.HasField("total") else "none"),
        ]
    print_table(("period", "used", "limit"), rows)


@app.command("revoke")
def admin_revoke(
    license_id: Annotated[str | None, typer.Argument(metavar="ID", help="Id of the license.")] = None,
    token: Annotated[
        str | None, typer.Option(metavar="TOKEN_ID", help="Revoke one access token instead, by the id in it.")
    ] = None,
    issued_before: Annotated[
        str | None, typer.Option(metavar="DATE", help="Revoke what was issued before, of the license or of --all.")
    ] = None,
    all_licenses: Annotated[bool, typer.Option("--all", help="Apply to every license; needs --issued-before.")] = False,
    why: WhyOption = "",
    server: ServerOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    timeout_s: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Revoke a license for good, one access token, or what was issued before a time; on every server of the store."""
    cutoff = None if issued_before is None else parse_date(issued_before, "--issued-before")
    with _connect(server, ca, certificate, key, timeout_s) as client:
        answer = client.revoke(
            license_id or "", token_id=token or "", issued_before=cutoff, all_licenses=all_licenses, why=why
        )
    if as_json:
        print_json(_plain(answer))
    elif token is not None:
        typer.echo(f"{token} is revoked")
    elif cutoff is not None:
        typer.echo(f"what was issued before {cutoff.isoformat()} is revoked, for {answer.licenses} licenses")
    else:
        _show_state(answer.state)


@app.command("suspend")
def admin_suspend(
    license_id: LicenseArgument,
    why: WhyOption = "",
    unpaid: UnpaidOption = False,
    server: ServerOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    timeout_s: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Suspend a license until it is reinstated."""
    with _connect(server, ca, certificate, key, timeout_s) as client:
        state = client.suspend(license_id, why=why, unpaid=unpaid)
    print_json(_plain(state)) if as_json else _show_state(state)


@app.command("reinstate")
def admin_reinstate(
    license_id: LicenseArgument,
    server: ServerOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    timeout_s: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """End a suspension; a revoked license stays revoked."""
    with _connect(server, ca, certificate, key, timeout_s) as client:
        state = client.reinstate(license_id)
    print_json(_plain(state)) if as_json else _show_state(state)


@app.command("drain")
def admin_drain(
    server: ServerOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    timeout_s: TimeoutOption = _TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Let the server finish the calls that run, refuse new ones, and end."""
    with _connect(server, ca, certificate, key, timeout_s) as client:
        answer = client.drain()
    if as_json:
        print_json(_plain(answer))
        return
    typer.echo(f"draining: {answer.running_calls} calls have {answer.drain_s:g} s to finish")


def _connect(
    server: str | None, ca: Path | None, certificate: Path | None, key: Path | None, timeout_s: float
) -> "AdminClient":
    """Makes a client from options, with the environment for those that were not given."""
    from keylock.errors import InputError
    from keylock_client import DEFAULT_ADMIN_TARGET, AdminClient, Tls

    files = {
        "--ca": str(ca or os.environ.get("KEYLOCK_ADMIN_CA") or ""),
        "--certificate": str(certificate or os.environ.get("KEYLOCK_ADMIN_CERTIFICATE") or ""),
        "--key": str(key or os.environ.get("KEYLOCK_ADMIN_KEY") or ""),
    }
    missing = [option for option, file in files.items() if not file]
    if missing:
        raise InputError(f"operators are known by their certificate: give {', '.join(missing)} too")
    tls = Tls(ca=files["--ca"], certificate=files["--certificate"], private_key=files["--key"])
    target = server or os.environ.get("KEYLOCK_ADMIN_TARGET") or DEFAULT_ADMIN_TARGET
    return AdminClient(target, tls=tls, timeout_s=timeout_s)


def _plain(message: "Message") -> Mapping[str, Any]:
    """Returns a message as JSON values, with its fields under the names they have in the proto."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _show_state(state: "admin_pb2.LicenseState") -> None:
    status = f"{state.status}, unpaid" if state.suspended_unpaid else state.status
    print_pairs([("license", state.license.id), ("customer", state.license.customer), ("status", status)])
