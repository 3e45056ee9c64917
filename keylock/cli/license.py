"""`keylock license`: issue, show and list licenses, and what is done to them: renew, suspend, revoke."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json, print_pairs, print_table
from keylock.cli._home import DEFAULT_HOME, HomeOption, IssuerOption, open_home, own_issuers
from keylock.cli._license_files import describe, describe_token, read_argument, trusted_issuers
from keylock.cli._options import takes
from keylock.cli._store import StoreOption, open_store
from keylock.cli._terms import (
    DaysOption,
    ExpiresOption,
    TermOptions,
    UnpaidOption,
    covered_models,
    end_of,
    make_license,
    parse_date,
)

if TYPE_CHECKING:
    from keylock.licensing import License, StoredLicense

__all__ = ["app"]

app = new_app("Issue, show, list, renew, suspend and revoke licenses.")

OutOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a license file (mode 0600) instead of printing it.")
]
LicenseArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the license.")]
WhyOption = Annotated[str, typer.Option(metavar="TEXT", help="A note for yourself; the customer never sees it.")]


@dataclass(frozen=True, kw_only=True)
class IssueOptions:
    """What `keylock license issue` was told; the help says what each is."""

    customer: Annotated[str, typer.Option(metavar="NAME", help="Customer that the license is for.")]
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name or digest of a model it covers, '*' for all; may be repeated.",
        ),
    ] = None
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Cover the model in this bundle, and no other version of it.")
    ] = None
    explainer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Explainer it covers; may be repeated. Without it: all."),
    ] = None
    days: DaysOption = None
    expires: ExpiresOption = None
    not_before: Annotated[str | None, typer.Option(metavar="DATE", help="When it starts. [now]")] = None
    terms: TermOptions
    out: OutOption = None
    store: StoreOption = field(default=None, repr=False)
    home: HomeOption = DEFAULT_HOME
    as_json: JsonOption = False


@app.command("issue")
@takes(IssueOptions)
def license_issue(options: IssueOptions) -> None:
    """Issue a license and print its token.

    The token is all that the customer needs. Whoever has it can use it, so send it as you would send a password.
    """
    from keylock.licensing import issue, new_license_id
    from keylock.licensing.handing_over import hand_over

    opened = open_home(options.home)
    now = datetime.now(UTC)
    start = now if options.not_before is None else parse_date(options.not_before, "--not-before")
    license = make_license(
        {
            "id": new_license_id(),
            "customer": options.customer,
            "models": covered_models(options.model, options.bundle, options.explainer),
            "explainers": tuple(options.explainer or ("*",)),
            "issued_at": now,
            "not_before": start,
            "expires": end_of(start, options.days, options.expires, now=now),
            **options.terms.as_fields(),
        }
    )
    signing_key = opened.signing_key()
    token = issue(license, signing_key)
    # The file is made first: a license that is in the store and was never handed out would only confuse.
    with open_store(options.store, options.home, create=True) as licenses:
        if options.out is not None:
            hand_over(options.out, token, own_issuers(options.home))
        licenses.add(license, issuer=signing_key.key_id)
    _hand_out(license, token, options.out, as_json=options.as_json)
    unchecked = [name for name in (*(options.model or ()), *(options.explainer or ())) if name != "*"]
    if options.bundle is None and unchecked:
        note(f"without --bundle nobody checked that these are spelt as in the model: {', '.join(unchecked)}")


@dataclass(frozen=True, kw_only=True)
class RenewOptions:
    """What `keylock license renew` was told; the help says what each is."""

    license_id: LicenseArgument
    days: DaysOption = None
    expires: ExpiresOption = None
    terms: TermOptions
    out: OutOption = None
    store: StoreOption = field(default=None, repr=False)
    home: HomeOption = DEFAULT_HOME
    as_json: JsonOption = False


@app.command("renew")
@takes(RenewOptions)
def license_renew(options: RenewOptions) -> None:
    """Grant a license anew, from now on, under the id it has; terms that are not named stay.

    Its use goes on to count, and limits that are changed hold at once, for the old file too. The old file ends when it
    says; to end it now: keylock license revoke ID --issued-before DATE.
    """
    from keylock.licensing import issue
    from keylock.licensing.handing_over import check_place, hand_over

    opened = open_home(options.home)
    now = datetime.now(UTC)
    changes = options.terms.as_fields()
    if options.out is not None:
        # Once it is renewed the old license may be refused: then the new one has to be there.
        check_place(options.out)
    with open_store(options.store, options.home) as licenses:
        old = licenses.get(options.license_id).license
        if "quota" in changes:
            changes["quota"] = {**old.quota.model_dump(), **changes["quota"]}
        if "disclosure" in changes and old.disclosure is not None:
            changes["disclosure"] = {**old.disclosure.model_dump(), **changes["disclosure"]}
        # No two issues of a license have the same time, by which servers tell them apart.
        issued_at = max(now, old.issued_at + timedelta(seconds=1))
        fresh = {
            "issued_at": issued_at,
            "not_before": min(now, old.not_before),
            "expires": end_of(now, options.days, options.expires, now=now),
        }
        license = make_license({**old.model_dump(), **changes, **fresh})
        signing_key = opened.signing_key()
        token = issue(license, signing_key)
        licenses.renew(license, issuer=signing_key.key_id)
        if options.out is not None:
            hand_over(options.out, token, own_issuers(options.home))
    _hand_out(license, token, options.out, as_json=options.as_json)


@app.command("show")
def license_show(
    license: Annotated[
        str, typer.Argument(metavar="LICENSE", help="Id of a license, a file with a token, or - for a token on stdin.")
    ],
    issuer: IssuerOption = None,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show what a license says and where it stands.

    Its signature is checked with --issuer, or with the keys beside it and in the vendor's directory; where there are
    none, the first line says that it was not checked. It is looked up in the store if there is one.
    """
    now = datetime.now(UTC)
    token = read_argument(license)
    if token is None:
        with open_store(store, home) as licenses:
            shown = describe(licenses.get(license), now)
    else:
        shown = describe_token(license, token, issuer, store, home, now)
    if as_json:
        print_json(shown)
    else:
        print_pairs((name, _show(value)) for name, value in shown.items())


@app.command("list")
def license_list(
    customer: Annotated[str | None, typer.Option(metavar="NAME", help="Only the licenses of this customer.")] = None,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """List the licenses issued, the oldest first."""
    now = datetime.now(UTC)
    with open_store(store, home) as licenses:
        stored = licenses.list(customer=customer)
    if as_json:
        print_json([describe(one, now) for one in stored])
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


@app.command("verify")
def license_verify(
    license: Annotated[str, typer.Argument(metavar="FILE", help="A license file, or - for one on stdin.")],
    issuer: IssuerOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check the signature and the dates of a license offline, with the vendor's public key alone.

    Whether it was revoked or suspended since is known to the vendor's store, which is not asked.
    """
    from keylock.errors import InputError
    from keylock.licensing import verify

    token = read_argument(license)
    if token is None:
        raise InputError(f"{license!r} is not a license file: give its path, or - to read it from stdin")
    verified = verify(token, trusted_issuers(issuer, home), now=datetime.now(UTC), leeway_s=0)
    if as_json:
        print_json({"valid": True, "license": verified})
    else:
        typer.echo(f"good: license {verified.id} of {verified.customer}, until {_show_time(verified.expires)}")


@app.command("suspend")
def license_suspend(
    license_id: LicenseArgument,
    why: WhyOption = "",
    unpaid: UnpaidOption = False,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Suspend a license until it is reinstated. Servers that use this store refuse it from now on.

    With --unpaid, disclosures that it is entitled to go on for as many days as it says.
    """
    now = datetime.now(UTC)
    with open_store(store, home) as licenses:
        _show_fate(licenses.suspend(license_id, at=now, why=why, unpaid=unpaid), now, as_json=as_json)


@app.command("reinstate")
def license_reinstate(
    license_id: LicenseArgument,
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """End a suspension. A revoked license stays revoked."""
    with open_store(store, home) as licenses:
        _show_fate(licenses.reinstate(license_id), datetime.now(UTC), as_json=as_json)


@app.command("revoke")
def license_revoke(
    license_id: Annotated[str | None, typer.Argument(metavar="ID", help="Id of the license.")] = None,
    token: Annotated[
        str | None, typer.Option(metavar="TOKEN_ID", help="Revoke one access token instead, by the id in it.")
    ] = None,
    issued_before: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Revoke what was issued before, of one license or, without ID, of all."),
    ] = None,
    why: WhyOption = "",
    store: StoreOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Revoke a license for good, or some of its tokens.

    Servers that use this store refuse it from now on.
    """
    from keylock.errors import InputError

    if (license_id is None and issued_before is None) == (token is None):
        raise InputError("say what to revoke: the ID of a license, --token TOKEN_ID, or --issued-before DATE")
    now = datetime.now(UTC)
    with open_store(store, home) as licenses:
        if token is not None:
            licenses.revoke_token(token, at=now)
            print_json({"token": token}) if as_json else typer.echo(f"{token} is revoked")
        elif issued_before is not None:
            cutoff = parse_date(issued_before, "--issued-before")
            count = licenses.refuse_before(cutoff, license_id=license_id)
            text = f"what was issued before {_show_time(cutoff)} is revoked, for {count} licenses"
            print_json({"issued_before": cutoff, "licenses": count}) if as_json else typer.echo(text)
        elif license_id is not None:
            _show_fate(licenses.revoke(license_id, at=now, why=why), now, as_json=as_json)


def _hand_out(license: "License", token: str, out: Path | None, *, as_json: bool) -> None:
    from keylock.licensing.handing_over import issuers_beside

    if as_json:
        written: dict[str, object] = (
            {"token": token} if out is None else {"token_file": out, "issuers_file": issuers_beside(out)}
        )
        print_json({"license": license, **written})
        return
    note(f"license {license.id} for {license.customer}, until {_show_time(license.expires)}")
    if out is not None:
        note(f"hand over {issuers_beside(out)} with it: your public keys, which check licenses, receipts and audits")
    typer.echo(token if out is None else str(out))


def _show_fate(stored: "StoredLicense", now: datetime, *, as_json: bool) -> None:
    if as_json:
        print_json(describe(stored, now))
        return
    since = stored.revoked_at or stored.suspended_at
    suffix = "" if since is None else f" since {_show_time(since)}"
    typer.echo(f"{stored.license.id} of {stored.license.customer} is {stored.status(now).value}{suffix}")


def _show(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        value = ", ".join(f"{name} {one}" for name, one in value.items() if one not in (None, False))
    return "-" if value in ("", None) else str(value)


def _show_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
