"""`keylock license`: issue, show, list and revoke licenses."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json, print_pairs, print_table
from keylock.cli._home import DEFAULT_HOME, HomeOption, IssuerOption, open_home, own_issuer, read_issuers

if TYPE_CHECKING:
    from keylock.licensing import License, StoredLicense
    from keylock.store import LicenseStore

__all__ = ["app"]

app = new_app("Issue, show, list and revoke licenses.")


@app.command("issue")
def license_issue(
    customer: Annotated[str, typer.Option(metavar="NAME", help="To whom.")],
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name or digest of a model it covers, '*' for all; may be repeated."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Cover the model in this bundle, and no other version of it.")
    ] = None,
    explainer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Explainer it covers; may be repeated. Without it: all."),
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, metavar="N", help="For how many days. [365]")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="When it ends instead: 2027-06-30 or 2027-06-30T12:00:00Z.")
    ] = None,
    not_before: Annotated[str | None, typer.Option(metavar="DATE", help="When it starts. [now]")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the token to a new file of mode 0600, not to the screen.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Issue a license and print its token.

    The token is all that the customer needs. Whoever has it can use it, so send it as you would send a password.
    """
    from keylock.licensing import issue

    opened = open_home(home)
    now = datetime.now(UTC)
    start = now if not_before is None else _parse_date(not_before, "--not-before")
    license = _make_license(
        customer=customer,
        models=_models(model, bundle, explainer),
        explainers=tuple(explainer or ("*",)),
        issued_at=now,
        not_before=start,
        expires=_end(start, days, expires),
    )
    signing_key = opened.signing_key()
    token = issue(license, signing_key)
    # The file is made first: a license that is in the store and was never handed out would only confuse.
    with _open_store(home) as store:
        if out is not None:
            _write_token(out, token)
        store.add(license, issuer=signing_key.key_id)
    if as_json:
        written: dict[str, object] = {"token": token} if out is None else {"token_file": out}
        print_json({"license": license, **written})
        return
    note(f"license {license.id} for {customer}, until {_show_time(license.expires)}")
    typer.echo(token if out is None else str(out))


@app.command("show")
def license_show(
    license: Annotated[
        str, typer.Argument(metavar="LICENSE", help="Id of a license, a file with a token, or - for a token on stdin.")
    ],
    issuer: IssuerOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show what a license says and where it stands.

    A token is verified with --issuer or the key of the vendor's directory, and looked up in the store if there is one.
    """
    now = datetime.now(UTC)
    token = _read_token(license)
    if token is None:
        with _open_store(home, create=False) as store:
            shown = _describe(store.get(license), now)
    else:
        shown = _describe_token(token, issuer, home, now)
    if as_json:
        print_json(shown)
    else:
        print_pairs((name, _show(value)) for name, value in shown.items())


@app.command("list")
def license_list(
    customer: Annotated[str | None, typer.Option(metavar="NAME", help="Only the licenses of this customer.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """List the licenses issued, the oldest first."""
    now = datetime.now(UTC)
    with _open_store(home, create=False) as store:
        stored = store.list(customer=customer)
    if as_json:
        print_json([_describe(one, now) for one in stored])
        return
    rows = [
        (
            one.license.id,
            one.license.customer,
            one.status(now).value,
            _show_time(one.license.expires),
            _show(one.license.models),
            _show(one.license.explainers),
        )
        for one in stored
    ]
    if not rows:
        note("no license was issued yet: keylock license issue" if customer is None else "this customer has none")
        return
    print_table(("id", "customer", "status", "expires", "models", "explainers"), rows)


@app.command("revoke")
def license_revoke(
    license_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the license.")],
    why: Annotated[str, typer.Option(metavar="TEXT", help="A note for yourself; the customer never sees it.")] = "",
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Revoke a license for good.

    Servers that use this store refuse it from now on.
    """
    now = datetime.now(UTC)
    with _open_store(home, create=False) as store:
        stored = store.revoke(license_id, at=now, why=why)
    if as_json:
        print_json(_describe(stored, now))
        return
    revoked_at = "" if stored.revoked_at is None else _show_time(stored.revoked_at)
    typer.echo(f"{license_id} of {stored.license.customer} is revoked since {revoked_at}")


def _open_store(home: Path, *, create: bool = True) -> "LicenseStore":
    from keylock.errors import ServiceError
    from keylock.signing import Home
    from keylock.store import LicenseStore

    opened = Home(home.expanduser())
    if not create and not opened.licenses_path.is_file():
        raise ServiceError(f"no license was issued from {opened.path} yet: keylock license issue, or another --home")
    return LicenseStore(opened.licenses_url)


def _make_license(
    *,
    customer: str,
    models: tuple[str, ...],
    explainers: tuple[str, ...],
    issued_at: datetime,
    not_before: datetime,
    expires: datetime,
) -> "License":
    from pydantic import ValidationError

    from keylock.errors import InputError
    from keylock.licensing import License, new_license_id

    try:
        return License(
            id=new_license_id(),
            customer=customer,
            models=models,
            explainers=explainers,
            issued_at=issued_at,
            not_before=not_before,
            expires=expires,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        raise InputError(f"cannot issue this license: {where}{first['msg'].removeprefix('Value error, ')}") from None


def _models(models: list[str] | None, bundle: Path | None, explainers: list[str] | None) -> tuple[str, ...]:
    """Returns the models to cover; explainers are checked against the bundle where there is one."""
    from keylock.bundle import open_bundle
    from keylock.errors import InputError, UnknownNameError

    if bundle is None and not models:
        raise InputError("say which models the license covers: --bundle BUNDLE, --model NAME or --model '*'")
    if bundle is None:
        return tuple(models or ())
    manifest = open_bundle(bundle, trusted=None).manifest
    offered = [entry.name for entry in manifest.explainers]
    for name in explainers or ():
        if name not in offered and name != "*":
            raise UnknownNameError("explainer", name, offered)
    return (*(models or ()), manifest.model_digest)


def _end(start: datetime, days: float | None, expires: str | None) -> datetime:
    from keylock.errors import InputError

    if expires is not None:
        if days is not None:
            raise InputError("give --days or --expires, not both")
        return _parse_date(expires, "--expires")
    try:
        return start + timedelta(days=365 if days is None else days)
    except OverflowError:
        raise InputError("--days is too large: no calendar reaches that far") from None


def _parse_date(text: str, option: str) -> datetime:
    from keylock.errors import InputError

    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(f"{option} must be a date such as 2027-06-30 or 2027-06-30T12:00:00Z") from None


def _write_token(path: Path, token: str) -> None:
    from keylock.errors import InputError
    from keylock.secrecy import write_secret_file

    try:
        write_secret_file(path, token.encode("ascii") + b"\n")
    except FileExistsError:
        raise InputError(f"{path} exists and is not overwritten: choose another path") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _read_token(argument: str) -> str | None:
    """Returns the token in a file or on stdin, or None where the argument is the id of a license."""
    from keylock.errors import InputError
    from keylock.licensing import MAX_TOKEN_BYTES

    if argument == "-":
        return sys.stdin.read(MAX_TOKEN_BYTES + 2).strip()
    if argument.count(".") == 2 and argument.startswith("ey"):
        return argument
    path = Path(argument)
    if not path.is_file():
        return None
    try:
        with path.open(encoding="ascii") as file:
            return file.read(MAX_TOKEN_BYTES + 2).strip()
    except (OSError, ValueError):
        raise InputError(f"{path} holds no license token") from None


def _describe_token(token: str, issuer: list[Path] | None, home: Path, now: datetime) -> dict[str, object]:
    from keylock.errors import LicenseError, SignatureError
    from keylock.licensing import StoredLicense, verify_ignoring_time
    from keylock.signing import Home

    own = own_issuer(home)
    keys = read_issuers(issuer) or ([own] if own is not None else [])
    if not keys:
        raise SignatureError("a token can only be shown after checking it: give --issuer with the vendor's public key")
    license = verify_ignoring_time(token, keys)
    if Home(home.expanduser()).licenses_path.is_file():
        try:
            with _open_store(home, create=False) as store:
                return _describe(store.get(license.id), now)
        except LicenseError:
            note("this license is not in the store: whether it was revoked is unknown")
    return _describe(StoredLicense(license=license, issuer="", revoked_at=None, revoked_why=""), now)


def _describe(stored: "StoredLicense", now: datetime) -> dict[str, object]:
    shown: dict[str, object] = {"status": stored.status(now).value, **stored.license.model_dump(mode="json")}
    if stored.revoked_at is not None:
        shown |= {"revoked_at": stored.revoked_at.isoformat(), "revoked_why": stored.revoked_why}
    return shown


def _show(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "-" if value in ("", {}) else str(value)


def _show_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
