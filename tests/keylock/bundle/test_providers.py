"""Every key provider alike: it opens what it sealed, for the model it sealed it for, and nothing else does.

The vault and the key management service are real HTTP servers on this machine that keep what a test gives them.
"""

import base64
import hashlib
import hmac
import json
import os
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keylock.bundle import HpkeIdentity, KeyFile, key_provider, seal, unseal
from keylock.bundle.providers import KEY_PROVIDERS
from keylock.bundle.providers.hpke import SUITE, read_hpke
from keylock.crypto.signing import SigningKey, canonical_json, decode_base64url
from keylock.errors import InputError, UnknownNameError, UnsealError

MODEL = "sha256:" + "ab" * 32
ISSUER = SigningKey.generate().verifying_key
BOUND = {"model_digest": MODEL, "issuer": ISSUER}
TOKEN = "hvs.the-token-of-the-vault"
SECRET = "AwsSecretAccessKeyThatNobodyMustSee"


class Keeper(BaseHTTPRequestHandler):
    """A vault and a key management service in one; keys are AES-GCM under their names, as both of them do it."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append((self.path, dict(self.headers), body))
        if server.answer is not None:
            return self._send(*server.answer)
        target = self.headers.get("X-Amz-Target")
        try:
            return self._send(200, self._kms(target, body) if target else self._vault(body))
        except PermissionError:
            return self._send(403, {"errors": ["permission denied"]})
        except Exception:
            error = (
                {"__type": "InvalidCiphertextException"} if target else {"errors": ["message authentication failed"]}
            )
            return self._send(400, error)

    def _vault(self, body):
        if self.headers["X-Vault-Token"] != TOKEN:
            raise PermissionError
        _, version, mount, operation, name = self.path.split("/")
        assert (version, mount) == ("v1", "transit")
        cipher, bound = AESGCM(hashlib.sha256(name.encode()).digest()), base64.b64decode(body["associated_data"])
        if operation == "encrypt":
            nonce = os.urandom(12)
            raw = nonce + cipher.encrypt(nonce, base64.b64decode(body["plaintext"]), bound)
            return {"data": {"ciphertext": "vault:v1:" + base64.b64encode(raw).decode()}}
        raw = base64.b64decode(body["ciphertext"].removeprefix("vault:v1:"))
        return {"data": {"plaintext": base64.b64encode(cipher.decrypt(raw[:12], raw[12:], bound)).decode()}}

    def _kms(self, target, body):
        cipher = AESGCM(hashlib.sha256(body["KeyId"].encode()).digest())
        bound = json.dumps(body["EncryptionContext"]).encode()
        if target == "TrentService.Encrypt":
            nonce = os.urandom(12)
            raw = nonce + cipher.encrypt(nonce, base64.b64decode(body["Plaintext"]), bound)
            return {"CiphertextBlob": base64.b64encode(raw).decode(), "KeyId": body["KeyId"]}
        raw = base64.b64decode(body["CiphertextBlob"])
        return {"Plaintext": base64.b64encode(cipher.decrypt(raw[:12], raw[12:], bound)).decode()}

    def _send(self, code, document, **headers):
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if code == 307:
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def keeper(monkeypatch):
    server = ThreadingHTTPServer(("localhost", 0), Keeper)
    server.asked, server.answer = [], None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.address = f"http://localhost:{server.server_port}"
    # boto3 reads these itself; nothing else in the tests may find other credentials.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL_KMS": server.address,
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def environment(keeper):
    return {"VAULT_ADDR": keeper.address, "VAULT_TOKEN": TOKEN, "SEALING": "11" * 32, "OTHER": "22" * 32}


@pytest.fixture
def provider(tmp_path, environment):
    """Makes a provider of a kind, and another of the same kind."""
    (tmp_path / "a.txt").write_text("a long passphrase")
    (tmp_path / "b.txt").write_text("another passphrase")
    for name in ("a", "b"):
        KeyFile.create(tmp_path / f"{name}.key")
        HpkeIdentity.create(tmp_path / f"{name}.pem")
    arguments = {
        "passphrase-file": (tmp_path / "a.txt", tmp_path / "b.txt"),
        "key-file": (tmp_path / "a.key", tmp_path / "b.key"),
        "environment": ("SEALING", "OTHER"),
        "hpke": (tmp_path / "a.pem", tmp_path / "b.pem"),
        "vault": ("transit/keylock", "transit/other"),
        "aws-kms": ("alias/keylock", "alias/other"),
    }
    assert set(arguments) == set(KEY_PROVIDERS)

    def make(kind, *, other=False):
        return key_provider(f"{kind}:{arguments[kind][other]}", environment=environment)

    return make


@pytest.mark.parametrize("kind", KEY_PROVIDERS)
def test_a_provider_opens_what_it_sealed(kind, provider, seed):
    sealed = seal(seed, **BOUND, sealer=provider(kind))
    assert unseal(sealed, **BOUND, sealer=provider(kind)) == seed
    assert seal(seed, **BOUND, sealer=provider(kind)) != sealed
    for secret in (seed.reveal().hex(), seed.reveal()):
        assert secret not in (sealed if isinstance(secret, bytes) else sealed.decode())


@pytest.mark.parametrize("kind", KEY_PROVIDERS)
def test_another_secret_model_or_issuer_does_not_open(kind, provider, seed):
    sealed = seal(seed, **BOUND, sealer=provider(kind))
    with pytest.raises(UnsealError):
        unseal(sealed, **BOUND, sealer=provider(kind, other=True))
    with pytest.raises(UnsealError, match="another model or issuer"):
        unseal(sealed, **(BOUND | {"model_digest": "sha256:" + "cd" * 32}), sealer=provider(kind))
    with pytest.raises(UnsealError, match="another model or issuer"):
        unseal(sealed, **(BOUND | {"issuer": SigningKey.generate().verifying_key}), sealer=provider(kind))


@pytest.mark.parametrize("kind", KEY_PROVIDERS)
def test_a_provider_of_another_kind_is_refused_with_what_to_give(kind, provider, seed):
    sealed = seal(seed, **BOUND, sealer=provider(kind))
    other = "hpke" if kind == "passphrase-file" else "passphrase-file"
    with pytest.raises(UnsealError, match=r"the key was sealed with .*, not with .*: give "):
        unseal(sealed, **BOUND, sealer=provider(other))


@pytest.mark.parametrize("kind", KEY_PROVIDERS)
def test_no_changed_field_opens(kind, provider, seed):
    sealed = json.loads(seal(seed, **BOUND, sealer=provider(kind)))
    places = [(sealed, name) for name in ("nonce", "ciphertext")]
    places += [(sealed["kdf"], name) for name in ("salt", "wrapped", "recipient", "key") if name in sealed["kdf"]]
    assert len(places) > 2
    for place, name in places:
        kept = place[name]
        place[name] = kept[:-3] + ("AAA" if not kept.endswith("AAA") else "BBB")
        with pytest.raises(UnsealError):
            unseal(canonical_json(sealed), **BOUND, sealer=provider(kind))
        place[name] = kept


@pytest.mark.parametrize("kind", KEY_PROVIDERS)
def test_a_provider_is_opaque(kind, provider):
    made = provider(kind)
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(made)
    for secret in (TOKEN, SECRET, "11" * 32, "passphrase", "PRIVATE"):
        assert secret not in repr(made).replace("Passphrase", "")
        assert secret not in made.name.replace("the passphrase", "")


@pytest.mark.parametrize("kind", ["passphrase-file", "key-file", "environment", "hpke"])
def test_a_closed_provider_opens_nothing(kind, provider, seed):
    sealed = seal(seed, **BOUND, sealer=provider(kind))
    with provider(kind) as opened:
        assert unseal(sealed, **BOUND, sealer=opened) == seed
    with pytest.raises(UnsealError):
        unseal(sealed, **BOUND, sealer=opened)


def test_what_is_no_provider_is_refused(environment, tmp_path):
    with pytest.raises(UnknownNameError, match="choose one of aws-kms, environment, hpke"):
        key_provider("pkcs11:token", environment=environment)
    with pytest.raises(InputError, match="needs an argument"):
        key_provider("vault", environment=environment)
    for text in ("environment:MISSING", f"key-file:{tmp_path}", "vault:transit", f"hpke:{tmp_path / 'none'}"):
        with pytest.raises(UnsealError):
            key_provider(text, environment=environment)
    (tmp_path / "no.pem").write_bytes(ISSUER.to_pem())
    with pytest.raises(UnsealError, match="no X25519 key"):
        key_provider(f"hpke:{tmp_path / 'no.pem'}", environment=environment)
    with pytest.raises(UnsealError, match="64 hexadecimal"):
        key_provider("environment:SHORT", environment={"SHORT": "11"})


def test_a_variable_opens_what_a_key_file_sealed(seed, tmp_path):
    file = KeyFile.create(tmp_path / "key")
    sealed = seal(seed, **BOUND, sealer=file)
    environment = {"K": (tmp_path / "key").read_text()}
    assert unseal(sealed, **BOUND, sealer=key_provider("environment:K", environment=environment)) == seed


# HPKE, a second time: RFC 9180, sections 4.1, 5.1 and 5.2, with its own example (appendix A.1.1).


def extract(salt, ikm):
    return hmac.digest(salt, ikm, "sha256")


def expand(prk, info, length):
    out, block = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(prk, block + info + bytes([number]), "sha256")
        out += block
    return out[:length]


def labeled_extract(suite, salt, label, ikm):
    return extract(salt, b"HPKE-v1" + suite + label + ikm)


def labeled_expand(suite, prk, label, info, length):
    return expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


def open_base(private, enc, ciphertext, *, info, bound, aead, key_bytes):
    public = private.public_key().public_bytes_raw()
    kem = b"KEM" + (0x20).to_bytes(2, "big")
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    secret = labeled_expand(kem, labeled_extract(kem, b"", b"eae_prk", shared), b"shared_secret", enc + public, 32)
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x20, 1, aead))
    psk_id, info_hash = (
        labeled_extract(suite, b"", b"psk_id_hash", b""),
        labeled_extract(suite, b"", b"info_hash", info),
    )
    context = b"\0" + psk_id + info_hash
    prk = labeled_extract(suite, secret, b"secret", b"")
    key = labeled_expand(suite, prk, b"key", context, key_bytes)
    nonce = labeled_expand(suite, prk, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, ciphertext, bound)


def test_the_second_implementation_opens_the_example_of_the_rfc():
    private = "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"
    opened = open_base(
        X25519PrivateKey.from_private_bytes(bytes.fromhex(private)),
        bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"),
        bytes.fromhex("f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"),
        info=b"Ode on a Grecian Urn",
        bound=b"Count-0",
        aead=1,
        key_bytes=16,
    )
    assert opened == b"Beauty is truth, truth beauty"


def test_the_second_implementation_opens_what_a_recipient_was_sealed(seed, tmp_path):
    identity = HpkeIdentity.create(tmp_path / "server.pem")
    sealed = json.loads(seal(seed, **BOUND, sealer=identity.recipient))
    wrapped = decode_base64url(sealed["kdf"]["wrapped"])
    info = b"keylock/v1/sealed-key\n" + MODEL.encode() + b"\n" + ISSUER.to_jwk()["x"].encode()
    key = open_base(identity._private, wrapped[:32], wrapped[32:], info=info, bound=b"", aead=2, key_bytes=32)
    ciphertext = decode_base64url(sealed.pop("ciphertext"))
    bound = b"keylock/v1/sealed-key\n" + canonical_json(sealed) + b"\n" + info.partition(b"\n")[2]
    assert AESGCM(key).decrypt(decode_base64url(sealed["nonce"]), ciphertext, bound) == seed.reveal()
    assert SUITE.decrypt(wrapped, identity._private, info=info) == key


def test_a_recipient_seals_and_opens_nothing(seed, tmp_path):
    identity = HpkeIdentity.create(tmp_path / "server.pem")
    assert (tmp_path / "server.pem").stat().st_mode & 0o777 == 0o600
    (tmp_path / "server.pub.pem").write_bytes(identity.recipient.to_pem())
    recipient = read_hpke(tmp_path / "server.pub.pem")
    assert recipient.key_id == identity.recipient.key_id
    sealed = seal(seed, **BOUND, sealer=recipient)
    with pytest.raises(UnsealError, match="public and opens nothing"):
        unseal(sealed, **BOUND, sealer=recipient)
    assert unseal(sealed, **BOUND, sealer=read_hpke(tmp_path / "server.pem")) == seed
    with pytest.raises(UnsealError, match="not overwritten"):
        HpkeIdentity.create(tmp_path / "server.pem")


# What may go wrong on the way to a vault.


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ((403, {"errors": ["permission denied"]}), "answers 403"),
        ((404, {}), "answers 404"),
        ((503, {}), "answers 503"),
        ((307, b""), "answers 307"),
        ((200, b"<html>"), "not a vault"),
        ((200, {"data": {}}), "not a vault"),
        ((200, {"data": {"ciphertext": 7, "plaintext": 7}}), "not a vault"),
        ((200, {"data": {"plaintext": "c2hvcnQ="}}), "not a key"),
        ((200, {"data": {"plaintext": "?"}}), "not a key"),
    ],
)
def test_a_vault_that_answers_otherwise_is_told_and_its_token_is_not(answer, what, provider, seed, keeper):
    sealed = seal(seed, **BOUND, sealer=provider("vault"))
    keeper.answer = answer
    with pytest.raises(UnsealError, match=what) as caught:
        unseal(sealed, **BOUND, sealer=provider("vault"))
    assert TOKEN not in str(caught.value)
    assert all(path != "/elsewhere" for path, _, _ in keeper.asked)


def test_a_vault_that_is_not_there_is_told(provider, seed, keeper, environment):
    unreachable = environment | {"VAULT_ADDR": "http://localhost:1"}
    with pytest.raises(UnsealError, match="cannot be reached"):
        seal(seed, **BOUND, sealer=key_provider("vault:transit/keylock", environment=unreachable))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"VAULT_ADDR": "http://vault.example.com:8200"}, "in the clear"),
        ({"VAULT_ADDR": "vault:8200"}, "not set"),
        ({"VAULT_ADDR": ""}, "not set"),
        ({"VAULT_TOKEN": ""}, "wants a token"),
        ({"VAULT_TOKEN_FILE": "/nowhere"}, "cannot read"),
    ],
)
def test_settings_of_a_vault_that_make_no_sense_are_refused(change, what, environment):
    with pytest.raises(UnsealError, match=what):
        key_provider("vault:transit/keylock", environment=environment | change)


def test_a_token_of_a_vault_may_be_in_a_file(environment, tmp_path, seed):
    (tmp_path / "token").write_text(TOKEN + "\n")
    changed = environment | {"VAULT_TOKEN": "", "VAULT_TOKEN_FILE": str(tmp_path / "token")}
    sealer = key_provider("vault:transit/keylock", environment=changed)
    assert unseal(seal(seed, **BOUND, sealer=sealer), **BOUND, sealer=sealer) == seed


def test_a_seed_never_leaves_for_a_vault_or_a_key_management_service(provider, seed, keeper):
    for kind in ("vault", "aws-kms"):
        seal(seed, **BOUND, sealer=provider(kind))
    sent = json.dumps(keeper.asked)
    assert len(keeper.asked) == 2
    assert base64.b64encode(seed.reveal()).decode() not in sent
    assert seed.reveal().hex() not in sent


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ((400, {"__type": "AccessDeniedException"}), "AccessDeniedException"),
        ((400, {"__type": "IncorrectKeyException"}), "does not open"),
        ((200, {"Plaintext": "c2hvcnQ="}), "not a key"),
    ],
)
def test_a_key_management_service_that_refuses_is_told(answer, what, provider, seed, keeper):
    sealed = seal(seed, **BOUND, sealer=provider("aws-kms"))
    keeper.answer = answer
    with pytest.raises(UnsealError, match=what) as caught:
        unseal(sealed, **BOUND, sealer=provider("aws-kms"))
    assert SECRET not in str(caught.value)


def test_a_key_management_service_that_is_not_there_is_told(provider, seed, keeper, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://localhost:1")
    with pytest.raises(UnsealError, match="cannot be reached"):
        seal(seed, **BOUND, sealer=provider("aws-kms"))
