"""tokens.py and claims.py: only an untouched token of a trusted issuer, at the right time, is a license."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import OctKey, OKPKey
from pydantic import ValidationError

from keylock.crypto.signing import SigningKey, canonical_json
from keylock.errors import LicenseError, LicenseReason
from keylock.licensing import (
    MAX_TOKEN_BYTES,
    TOKEN_TYPE,
    License,
    check,
    issue,
    issue_access,
    new_license_id,
    verify,
    verify_access,
    verify_ignoring_time,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DIGEST = "sha256:" + "ab" * 32
ISSUER = SigningKey.generate()
OTHER_ISSUER = SigningKey.generate()
HEADER = {"alg": "Ed25519", "typ": TOKEN_TYPE, "kid": ISSUER.key_id}


def make_license(**changes):
    fields = {
        "id": "lic_1",
        "customer": "Acme Ltd",
        "models": ("shapes",),
        "explainers": ("grad_cam", "gradient"),
        "issued_at": NOW,
        "not_before": NOW,
        "expires": NOW + 30 * DAY,
    }
    return License(**(fields | changes))


def b64(data):
    if not isinstance(data, bytes):
        # As canonical JSON, and more: not all of it need be finite numbers.
        data = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign_raw(header, payload, key=ISSUER):
    """Signs whatever it is given: a token that keylock itself would never make."""
    signing_input = f"{b64(header)}.{b64(payload)}"
    return f"{signing_input}.{b64(key.sign(signing_input.encode()))}"


def claims_of(token):
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def reason_of(token, *, keys=(ISSUER.verifying_key,), now=NOW, **options):
    with pytest.raises(LicenseError) as caught:
        verify(token, keys, now=now, **options)
    assert len(token) < 20 or token not in str(caught.value)
    return caught.value.reason


TOKEN = issue(make_license(), ISSUER)
CLAIMS = claims_of(TOKEN)


def test_issued_license_is_verified():
    license = make_license(customer="Żółć & Söhne", models=("*", DIGEST), features={"tier": "gold"})
    keys = [OTHER_ISSUER.verifying_key, ISSUER.verifying_key]
    assert verify(issue(license, ISSUER), keys, now=NOW) == license


def test_token_is_a_jws_that_another_implementation_reads():
    header, payload, signature = (base64.urlsafe_b64decode(part + "==") for part in TOKEN.split("."))
    assert json.loads(header) == HEADER
    assert json.loads(payload) == {
        "iss": ISSUER.key_id,
        "jti": "lic_1",
        "sub": "Acme Ltd",
        "iat": int(NOW.timestamp()),
        "nbf": int(NOW.timestamp()),
        "exp": int((NOW + 30 * DAY).timestamp()),
        "models": ["shapes"],
        "explainers": ["grad_cam", "gradient"],
        "features": {},
    }
    ISSUER.verifying_key.verify(signature, TOKEN.rpartition(".")[0].encode())


def test_raw_signer_of_these_tests_makes_good_tokens():
    assert verify(sign_raw(HEADER, CLAIMS), [ISSUER.verifying_key], now=NOW) == make_license()


# Issuer and signature


def test_license_of_another_issuer_is_refused():
    assert reason_of(issue(make_license(), OTHER_ISSUER)) == LicenseReason.UNKNOWN_ISSUER
    assert reason_of(TOKEN, keys=()) == LicenseReason.UNKNOWN_ISSUER


def test_license_signed_by_another_under_the_issuers_name_is_forged():
    assert reason_of(sign_raw(HEADER, CLAIMS, OTHER_ISSUER)) == LicenseReason.FORGED


def test_license_that_names_another_issuer_inside_is_forged():
    token = sign_raw(HEADER, CLAIMS | {"iss": OTHER_ISSUER.key_id})
    assert reason_of(token) == LicenseReason.FORGED


@pytest.mark.parametrize(
    "change", [{"models": ["*"]}, {"exp": CLAIMS["exp"] + 1}, {"sub": "Evil"}, {"jti": "lic_2"}], ids=str
)
def test_changed_claim_is_forged(change):
    header, _, signature = TOKEN.split(".")
    assert reason_of(f"{header}.{b64(canonical_json(CLAIMS | change))}.{signature}") == LicenseReason.FORGED


def test_signature_of_another_license_is_forged():
    other = issue(make_license(id="lic_2"), ISSUER).split(".")[2]
    assert reason_of(TOKEN.rpartition(".")[0] + "." + other) == LicenseReason.FORGED


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
@pytest.mark.parametrize("signature", ["", "old"])
def test_algorithm_none_is_forged(algorithm, signature):
    old = TOKEN.split(".")[2]
    token = f"{b64(HEADER | {'alg': algorithm})}.{b64(CLAIMS)}.{old if signature else ''}"
    assert reason_of(token) == LicenseReason.FORGED


@pytest.mark.parametrize("secret", ["pem", "raw", "jwk", "x"])
def test_hs256_under_the_public_key_is_forged(secret):
    """The classic confusion: an HMAC whose secret is what everybody knows."""
    public = ISSUER.verifying_key
    secrets = {
        "pem": public.to_pem(),
        "raw": base64.urlsafe_b64decode(public.to_jwk()["x"] + "="),
        "jwk": canonical_json(public.to_jwk()),
        "x": public.to_jwk()["x"].encode(),
    }
    header = b64(HEADER | {"alg": "HS256"})
    signing_input = f"{header}.{b64(CLAIMS)}"
    mac = hmac.new(secrets[secret], signing_input.encode(), hashlib.sha256).digest()
    assert reason_of(f"{signing_input}.{b64(mac)}") == LicenseReason.FORGED


def test_hs256_made_by_a_library_is_forged():
    key = OctKey.import_key(b"a secret of thirty-two bytes or so")
    token = jws.serialize_compact(HEADER | {"alg": "HS256"}, json.dumps(CLAIMS), key, algorithms=["HS256"])
    assert reason_of(token) == LicenseReason.FORGED


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_older_name_of_the_algorithm_is_refused():
    key = OKPKey.import_key(ISSUER.reveal())
    token = jws.serialize_compact(HEADER | {"alg": "EdDSA"}, json.dumps(CLAIMS), key, algorithms=["EdDSA"])
    assert reason_of(token) == LicenseReason.FORGED


# Header and spelling


@pytest.mark.parametrize(
    "change",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"jwk": OTHER_ISSUER.verifying_key.to_jwk()},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/cert"},
        {"typ": "JWT"},
        {"typ": None},
        {"kid": None},
        {"kid": ["a"]},
        {"cty": "x"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_header_is_malformed_even_when_signed(change):
    assert reason_of(sign_raw(HEADER | change, CLAIMS)) == LicenseReason.MALFORMED


def test_header_has_one_spelling():
    for header in (json.dumps(HEADER), json.dumps(HEADER, indent=1), json.dumps(dict(reversed(HEADER.items())))):
        assert reason_of(sign_raw(header.encode(), CLAIMS)) == LicenseReason.MALFORMED


def test_token_of_another_implementation_is_the_same():
    header = dict(sorted(HEADER.items()))
    key = OKPKey.import_key(ISSUER.reveal())
    made = jws.serialize_compact(header, canonical_json(CLAIMS), key, algorithms=["Ed25519"])
    assert made == TOKEN
    public = OKPKey.import_key(dict(ISSUER.verifying_key.to_jwk()))
    assert json.loads(jws.deserialize_compact(TOKEN, public, algorithms=["Ed25519"]).payload) == CLAIMS


@pytest.mark.parametrize(
    "header", [b"", b"{", b"[]", b'"Ed25519"', b"\xff", b"[" * 200, b"{}" + b" " * 300], ids=range(7)
)
def test_header_that_is_no_object_is_malformed(header):
    assert reason_of(sign_raw(header, CLAIMS)) == LicenseReason.MALFORMED


@pytest.mark.parametrize("length", [0, 1, 10, len(TOKEN) // 2, len(TOKEN) - 20, len(TOKEN) - 1])
def test_truncated_token_is_malformed(length):
    assert reason_of(TOKEN[:length]) == LicenseReason.MALFORMED


def test_every_truncation_is_refused():
    for length in range(len(TOKEN)):
        with pytest.raises(LicenseError):
            verify(TOKEN[:length], [ISSUER.verifying_key], now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token + ".",
        lambda token: token + "." + token,
        lambda token: "." + token,
        lambda token: token.replace(".", ".="),
        lambda token: token.replace(".", ". "),
        lambda token: "Bearer " + token,
        lambda token: token.replace(".", "․"),
        lambda token: "٠" + token,
    ],
    ids=range(11),
)
def test_other_spelling_of_a_good_token_is_malformed(change):
    assert reason_of(change(TOKEN)) == LicenseReason.MALFORMED


def test_signature_has_one_spelling():
    """The last character carries four bits that do not count; only one choice of them is accepted."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    accepted = []
    for character in alphabet:
        try:
            verify(TOKEN[:-1] + character, [ISSUER.verifying_key], now=NOW)
            accepted.append(character)
        except LicenseError:
            pass
    assert accepted == [TOKEN[-1]]


@pytest.mark.parametrize("length", [MAX_TOKEN_BYTES + 1, 10_000_000])
def test_oversize_token_is_malformed_before_it_is_decoded(length):
    assert reason_of(TOKEN + "A" * (length - len(TOKEN))) == LicenseReason.MALFORMED
    padded = sign_raw(HEADER, CLAIMS | {"features": {"x": "y" * MAX_TOKEN_BYTES}})
    assert reason_of(padded) == LicenseReason.MALFORMED


@pytest.mark.parametrize(
    "spelling", [lambda text: text + "=", lambda text: text + "A", lambda text: text[:-1] + "-" + "*"]
)
def test_other_spelling_of_the_payload_is_malformed_even_when_signed(spelling):
    signing_input = f"{b64(HEADER)}.{spelling(b64(CLAIMS))}"
    token = f"{signing_input}.{b64(ISSUER.sign(signing_input.encode()))}"
    assert reason_of(token) == LicenseReason.MALFORMED


def test_license_too_long_for_a_token_is_not_issued():
    with pytest.raises(LicenseError, match="too long"):
        issue(make_license(features={"x": "y" * MAX_TOKEN_BYTES}), ISSUER)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xff",
        b"[" * 3000,
        {k: v for k, v in CLAIMS.items() if k != "exp"},
        CLAIMS | {"exp": "2027"},
        CLAIMS | {"exp": 1e400},
        CLAIMS | {"exp": 10**30},
        CLAIMS | {"nbf": -1},
        CLAIMS | {"exp": CLAIMS["nbf"]},
        CLAIMS | {"models": []},
        CLAIMS | {"models": "shapes"},
        CLAIMS | {"models": ["a b"]},
        CLAIMS | {"explainers": ["../x"]},
        CLAIMS | {"jti": "a\nb"},
        CLAIMS | {"sub": "a\x1b[2Jb"},
        CLAIMS | {"sub": ""},
        CLAIMS | {"admin": True},
        CLAIMS | {"features": {"x": float("inf")}},
        CLAIMS | {"features": {"x": "\ud800"}},
    ],
    ids=range(22),
)
def test_payload_that_is_no_license_is_malformed_even_when_signed(payload):
    assert reason_of(sign_raw(HEADER, payload)) == LicenseReason.MALFORMED


# Time


def test_license_holds_from_its_start_to_its_end_give_or_take_the_leeway():
    start, end, second = NOW, NOW + 30 * DAY, timedelta(seconds=1)
    keys = [ISSUER.verifying_key]
    for moment in (start, start - 30 * second, end - second, end + 29 * second):
        verify(TOKEN, keys, now=moment)
    assert reason_of(TOKEN, now=start - 31 * second) == LicenseReason.NOT_YET_VALID
    assert reason_of(TOKEN, now=end + 30 * second) == LicenseReason.EXPIRED
    assert reason_of(TOKEN, now=start - second, leeway_s=0) == LicenseReason.NOT_YET_VALID
    assert reason_of(TOKEN, now=end, leeway_s=0) == LicenseReason.EXPIRED


def test_time_zone_of_the_clock_does_not_matter():
    from datetime import timezone

    verify(TOKEN, [ISSUER.verifying_key], now=NOW.astimezone(timezone(timedelta(hours=-11))))


def test_clock_skew_is_explained():
    with pytest.raises(LicenseError, match=r"holds from 2026-11-22 12:00:00 UTC .* 2026-11-21 12:00:00 UTC .*clocks"):
        verify(TOKEN, [ISSUER.verifying_key], now=NOW - DAY)
    with pytest.raises(LicenseError, match=r"expired at 2026-12-22 .* ask the vendor"):
        verify(TOKEN, [ISSUER.verifying_key], now=NOW + 60 * DAY)


def test_time_is_all_that_is_ignored():
    token = issue(make_license(not_before=NOW - 9 * DAY, expires=NOW - 8 * DAY), ISSUER)
    assert verify_ignoring_time(token, [ISSUER.verifying_key]).id == "lic_1"
    with pytest.raises(LicenseError) as caught:
        verify_ignoring_time(token, [OTHER_ISSUER.verifying_key])
    assert caught.value.reason == LicenseReason.UNKNOWN_ISSUER
    with pytest.raises(LicenseError):
        verify_ignoring_time(token[:-9] + "AAAAAAAAA", [ISSUER.verifying_key])


# What it covers


@pytest.mark.parametrize("models", [("shapes",), ("*",), (DIGEST,), ("other", "shapes")])
@pytest.mark.parametrize("explainers", [("grad_cam",), ("*",), ("gradient", "grad_cam")])
def test_license_covers_what_it_names(models, explainers):
    license = make_license(models=models, explainers=explainers)
    check(license, model_name="shapes", model_digest=DIGEST, explainer="grad_cam")
    check(license, model_name="shapes", model_digest=DIGEST)


@pytest.mark.parametrize("models", [("other",), ("sha256:" + "cd" * 32,), ("shape",), ("Shapes",)])
def test_license_for_another_model_is_refused(models):
    with pytest.raises(LicenseError, match="does not cover the model shapes") as caught:
        check(make_license(models=models), model_name="shapes", model_digest=DIGEST, explainer="grad_cam")
    assert caught.value.reason == LicenseReason.WRONG_MODEL


def test_license_for_another_explainer_is_refused():
    with pytest.raises(LicenseError, match="does not cover the explainer lime") as caught:
        check(make_license(), model_name="shapes", model_digest=DIGEST, explainer="lime")
    assert caught.value.reason == LicenseReason.WRONG_EXPLAINER


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "a b"},
        {"id": "x" * 65},
        {"customer": " Acme"},
        {"customer": "a\nb"},
        {"customer": "x" * 201},
        {"models": ()},
        {"models": ("a", "a")},
        {"models": ("sha256:12",)},
        {"explainers": ("x y",)},
        {"expires": NOW},
        {"expires": datetime(2027, 1, 1)},
        {"more": 1},
        {"features": {"x": float("nan")}},
        {"features": {"x": [float("inf")]}},
    ],
    ids=str,
)
def test_impossible_license_is_refused(changes):
    with pytest.raises(ValidationError):
        make_license(**changes)


def test_new_ids_differ():
    assert len({new_license_id() for _ in range(100)}) == 100


# Fuzz


def refused_or_original(token):
    """A token is refused with a LicenseError or it is the very one that was issued; nothing else may happen."""
    try:
        license = verify(token, [ISSUER.verifying_key], now=NOW)
    except LicenseError:
        return
    assert license == make_license()
    assert token == TOKEN


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_refused(text):
    refused_or_original(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=80), min_size=3, max_size=3))
def test_any_three_parts_are_refused(parts):
    refused_or_original(".".join(b64(part) for part in parts))


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(TOKEN) - 1), st.characters(codec="utf-8"))
def test_any_changed_character_is_refused(position, character):
    refused_or_original(TOKEN[:position] + character + TOKEN[position + 1 :])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(TOKEN)), st.integers(0, len(TOKEN)), st.text("ABCabc-_.=", max_size=5))
def test_any_splice_is_refused(start, end, text):
    refused_or_original(TOKEN[:start] + text + TOKEN[end:])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["alg", "typ", "kid", "crit", "x"]), json_values)
def test_any_header_that_is_signed_is_refused_or_the_true_one(name, value):
    try:
        verify(sign_raw(HEADER | {name: value}, CLAIMS), [ISSUER.verifying_key], now=NOW)
    except LicenseError:
        return
    assert HEADER.get(name) == value


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(CLAIMS)), json_values)
def test_any_payload_that_is_signed_is_a_license_or_refused(name, value):
    try:
        license = verify(sign_raw(HEADER, CLAIMS | {name: value}), [ISSUER.verifying_key], now=NOW)
    except LicenseError:
        return
    assert claims_of(issue(license, ISSUER))[name] == value


@pytest.mark.parametrize("thumbprint", ["", "é" * 43, "a" * 42, "a" * 44, "a" * 43 + "\n", "a b" + "a" * 40, None, 7])
def test_access_token_bound_to_what_is_no_thumbprint_is_malformed_even_when_signed(thumbprint):
    bound, _ = issue_access(make_license(), ISSUER, now=NOW, lifetime_s=600, thumbprint="a" * 43)
    header = json.loads(base64.urlsafe_b64decode(bound.split(".")[0] + "=="))
    keys = (ISSUER.verifying_key,)
    assert verify_access(bound, keys, now=NOW, thumbprint="a" * 43).license == make_license()

    changed = sign_raw(header, claims_of(bound) | {"cnf": {"x5t#S256": thumbprint}})

    with pytest.raises(LicenseError) as caught:
        verify_access(changed, keys, now=NOW, thumbprint="a" * 43)
    assert caught.value.reason == LicenseReason.MALFORMED
