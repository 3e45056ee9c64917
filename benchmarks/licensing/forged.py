"""Tokens and requests that must be refused: forged, altered, cut, replayed, of another issuer, at the wrong time.

    python benchmarks/licensing/forged.py --count 12000 --seed 1

Every one is sent to a server as a call for an explanation. None may be accepted, and none may be answered with
`INTERNAL`.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import random
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc

from keylock.crypto.signing import SigningKey, VerifyingKey
from keylock.licensing import License, issue, issue_access
from keylock.store import LicenseStore
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

Make = Callable[[random.Random], str]
Call = tuple[str, str, dict[str, str]]
"""A kind of badness, a token, and the fields of a request."""

SPENT_REQUEST: Final = "spent"
_LETTERS = string.ascii_letters + string.digits + "-_"


def corpus(
    generator: random.Random, *, good: License, issuer: SigningKey, access_key: SigningKey, now: datetime
) -> Iterator[tuple[str, str]]:
    """Makes bad tokens without end, of every kind in turn.

    Args:
        generator: Chooses what is changed.
        good: A license the server knows, for every model and explainer.
        issuer: The issuer the server trusts.
        access_key: A key for access tokens that the server does not trust.
        now: The server's time.

    Yields:
        The kind of badness, and the token.
    """
    token = issue(good, issuer)
    header, payload, signature = token.split(".")
    claims = _json(payload)
    stranger = SigningKey.generate()
    day = timedelta(days=1)

    def resigned(head: dict[str, Any], body: Any, key: SigningKey = issuer) -> str:  # noqa: ANN401 - any JSON
        signed = f"{_text(head)}.{_text(body)}"
        return f"{signed}.{_base64(key.sign(signed.encode()))}"

    def altered(g: random.Random) -> str:
        place = g.randrange(len(token))
        return token[:place] + g.choice(_LETTERS.replace(token[place], "")) + token[place + 1 :]

    def claimed(g: random.Random) -> str:
        name = g.choice([name for name in claims if name not in ("sub", "features")])
        value = g.choice((None, -1, 2**63, 1e308, "", [], {}, True, "*", ["*"] * 200, "\u0000", {"day": -1}))
        return resigned(_json(header), {**claims, name: value} if value != claims[name] else {})

    def elsewhere(g: random.Random) -> str:
        body = {**claims, g.choice(("sub", "exp", "models", "jti", "quota")): g.choice(("x", 1, ["another"], {}))}
        return f"{header}.{_text(body)}.{signature}"

    def head(g: random.Random) -> str:
        name, value = g.choice(
            (
                ("alg", "none"),
                ("alg", "EdDSA"),
                ("alg", "HS256"),
                ("alg", "ed25519"),
                ("alg", None),
                ("alg", ["Ed25519"]),
                ("typ", "JWT"),
                ("typ", "keylock-access+jws"),
                ("kid", stranger.key_id),
                ("kid", 7),
                ("kid", "../../etc/passwd"),
                ("crit", ["b64"]),
                ("b64", False),
                ("jwk", stranger.verifying_key.to_jwk()),
                ("jku", "https://127.0.0.1/keys"),
                ("x5u", "https://127.0.0.1/chain"),
                ("x5c", ["MII"]),
                ("zip", "DEF"),
            )
        )
        return resigned({**_json(header), name: value}, claims, g.choice((issuer, stranger)))

    def confused(g: random.Random) -> str:
        """An HMAC under the public key, which a verifier that trusts `alg` would accept."""
        key: VerifyingKey = issuer.verifying_key
        secret = g.choice((key.to_pem(), key.to_pem().strip(), base64.urlsafe_b64decode(key.to_jwk()["x"] + "=")))
        signed = f"{_text({'alg': 'HS256', 'typ': 'keylock-license+jws', 'kid': key.key_id})}.{payload}"
        return f"{signed}.{_base64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"

    def timed(g: random.Random) -> str:
        start = g.choice((-400, 2, 40)) * day
        length = timedelta(seconds=g.randrange(1, 86_400))
        moved = good.model_copy(update={"not_before": now + start, "expires": now + start + length})
        return issue(moved, issuer)

    def foreign(g: random.Random) -> str:
        return issue(good, stranger) if g.random() < 0.5 else resigned(_json(header), claims, stranger)

    def unknown(g: random.Random) -> str:
        return issue(good.model_copy(update={"id": f"lic_{g.getrandbits(80):020x}"}), issuer)

    def access(g: random.Random) -> str:
        made, _ = issue_access(good, access_key, now=now, lifetime_s=g.randrange(300, 900))
        return made

    def spelled(g: random.Random) -> str:
        return g.choice(
            (
                token + "=",
                token + ".",
                "." + token,
                f"{header}.{payload}",
                f"{header}..{signature}",
                f"{header}.{payload}.{signature}.{signature}",
                f"{payload}.{header}.{signature}",
                token.replace(".", "..", 1),
                token.swapcase(),
                token[::-1],
                f"{header}=.{payload}.{signature}",
                token + token,
            )
        )

    def noise(g: random.Random) -> str:
        return "".join(g.choice(string.printable.strip()) for _ in range(g.choice((1, 20, 300, 9000)))) + "~"

    kinds: dict[str, Make] = {
        "altered": altered,
        "truncated": lambda g: token[: g.randrange(1, len(token))],
        "claims": claimed,
        "payload of another": elsewhere,
        "header": head,
        "hmac under the public key": confused,
        "wrong time": timed,
        "other issuer": foreign,
        "not in the store": unknown,
        "access token of another server": access,
        "spelled otherwise": spelled,
        "noise": noise,
    }
    while True:
        for name, make in kinds.items():
            yield name, make(generator)


def genuine(
    grant: Callable[..., tuple[License, str]],
    store: LicenseStore,
    *,
    spent: str,
    access_key: SigningKey,
    now: datetime,
) -> list[Call]:
    """Makes calls with tokens that are genuine, and good for something else or no longer.

    Args:
        grant: Issues a license with some terms and records it.
        store: Where that is.
        spent: A token under which `SPENT_REQUEST` was asked for already, with the explainer `coarse`.
        access_key: A key for access tokens that the server trusts.
        now: The server's time.
    """
    plain: dict[str, str] = {}
    license, _ = grant()
    late, _ = issue_access(license, access_key, now=now - timedelta(hours=1), lifetime_s=900)
    bound, _ = issue_access(license, access_key, now=now, lifetime_s=900, thumbprint=_base64(bytes(32)))
    withdrawn, access = issue_access(license, access_key, now=now, lifetime_s=900)
    store.revoke_token(access.id, at=now)
    (revoked, revoked_token), (suspended, suspended_token), (cut_off, cut_off_token) = grant(), grant(), grant()
    store.revoke(revoked.id, at=now)
    store.suspend(suspended.id, at=now)
    store.refuse_before(now + timedelta(days=1), license_id=cut_off.id)
    return [
        ("request id of another request", spent, {"request_id": SPENT_REQUEST, "explainer": "brightness"}),
        ("wrong model", grant(models=("another",))[1], plain),
        ("wrong explainer", grant(explainers=("coarse",))[1], {"explainer": "brightness"}),
        ("access token that has ended", late, plain),
        ("access token of another connection", bound, plain),
        ("access token that was revoked", withdrawn, plain),
        ("revoked", revoked_token, plain),
        ("suspended", suspended_token, plain),
        ("issued before a cut-off", cut_off_token, plain),
    ]


async def spend(target: str, token: str, image: pb.Image) -> None:
    """Asks for `SPENT_REQUEST`, which is answered and charged."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
        request = pb.ExplainRequest(images=[image], request_id=SPENT_REQUEST, explainer="coarse")
        await stub.Explain(request, metadata=[("authorization", f"Bearer {token}")], timeout=60)


async def send(target: str, calls: list[Call], image: pb.Image) -> Counter[str]:
    """Sends every bad call, and counts how each kind was answered.

    Args:
        target: The server.
        calls: Kind, token and further fields of the request.
        image: The image to ask about.
    """
    found: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(target) as channel:
        stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
        left = iter(calls)

        async def caller() -> None:
            for kind, token, fields in left:
                metadata = [("authorization", f"Bearer {token}")]
                try:
                    await stub.Explain(pb.ExplainRequest(images=[image], **fields), metadata=metadata, timeout=60)
                    found[f"ACCEPTED {kind}"] += 1
                except grpc.aio.AioRpcError as error:
                    found[error.code().name] += 1

        await asyncio.gather(*(caller() for _ in range(16)))
    return found


def _json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _text(value: object) -> str:
    return _base64(json.dumps(value, separators=(",", ":"), sort_keys=True).encode())


def main() -> None:
    """Runs the corpus against a server."""
    from world import Server, World, image, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = World.make(folder, f"sqlite:///{folder / 'licenses.db'}")
        now = datetime.now(UTC)
        good, spent = world.grant()
        tokens = corpus(
            random.Random(options.seed),
            good=good,
            issuer=world.signing_key,
            access_key=SigningKey.generate(),
            now=now,
        )
        calls: list[Call] = [(*next(tokens), {}) for _ in range(options.count)]
        access_key = SigningKey.generate()
        access_key.write(folder / "tokens.pem")
        calls += genuine(world.grant, world.store, spent=spent, access_key=access_key, now=now) * 100
        server = Server(world, "forged", settings={"token_keys": json.dumps([str(folder / "tokens.pem")])})
        try:
            asyncio.run(spend(server.target, spent, image(1)))
            found = asyncio.run(send(server.target, calls, image(1)))
        finally:
            server.stop()
        # Less the one request that was good.
        charged = world.books().reconciliation.requests - 1
        world.store.close()
    accepted = sum(count for kind, count in found.items() if kind.startswith("ACCEPTED"))
    record(
        "forged",
        {
            "what": "forged",
            "seed": options.seed,
            "calls": len(calls),
            "accepted": accepted,
            "internal": found["INTERNAL"] + found["UNKNOWN"],
            "charged": charged,
            "answers": dict(found),
        },
    )


if __name__ == "__main__":
    main()
