"""`model.sig`: the public tool of OpenSSF Model Signing verifies what keylock signs, and the other way round."""

import base64
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keylock.bundle import (
    KeyFile,
    add_model_signature,
    export_public,
    make_model_signature,
    open_bundle,
    reseal,
    verify_model_signature,
    write_bundle,
)
from keylock.crypto.ecdsa import EcdsaSigningKey, EcdsaVerifyingKey
from keylock.errors import BundleError, BundleTamperedError, SignatureError

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
HASHES = {"P-256": hashes.SHA256(), "P-384": hashes.SHA384(), "P-521": hashes.SHA512()}


@pytest.fixture(scope="module")
def key():
    return EcdsaSigningKey.generate()


@pytest.fixture
def folder(tmp_path, content, signing_key, seed, key_file):
    """A bundle in a folder, without a model signature."""
    write_bundle(tmp_path / "model", content, signing_key=signing_key, seed=seed, sealer=key_file)
    return tmp_path / "model"


@pytest.fixture
def signed(folder, key):
    add_model_signature(opened(folder), key)
    return folder


@pytest.fixture
def tool(tmp_path, key):
    """The public tool on the command line, with the key in files: `tool(verb, folder)` gives exit code and output."""
    pytest.importorskip("model_signing", reason="pip install '.[dev]' brings the public tool: model-signing")
    key.write(tmp_path / "oms.pem")
    key.verifying_key.write(tmp_path / "oms.pub.pem")

    def run(verb, folder, *options, signature=None):
        given = {"sign": ["--private_key", "oms.pem"], "verify": ["--public_key", "oms.pub.pem"]}[verb]
        command = [sys.executable, "-m", "model_signing", verb, "key", str(folder), *given, *options]
        command += ["--signature", str(signature or folder / "model.sig")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def opened(path):
    return open_bundle(path, trusted=None)


def statement_of(raw):
    return json.loads(base64.b64decode(json.loads(raw)["dsseEnvelope"]["payload"]))


def signature_over(statement, curve="P-256", private=None, payload_type="application/vnd.in-toto+json", hint=None):
    """A Sigstore bundle made by hand, from the text of the standards alone, and the public half of its key."""
    private = private or ec.generate_private_key(CURVES[curve])
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    encoded = b"DSSEv1 " + f"{len(payload_type)} {payload_type} {len(payload)} ".encode() + payload
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hint or hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"sig": base64.b64encode(private.sign(encoded, ec.ECDSA(HASHES[curve]))).decode()}],
        },
    }
    return bundle, EcdsaVerifyingKey(private.public_key())


def with_root(statement):
    """The statement with the digest that its resources give, as the standard computes it."""
    together = b"".join(bytes.fromhex(resource["digest"]) for resource in statement["predicate"]["resources"])
    statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(together).hexdigest()
    return statement


def check(folder, bundle, key):
    (folder / "model.sig").write_text(bundle if isinstance(bundle, str) else json.dumps(bundle))
    verify_model_signature(opened(folder), key)


def test_the_public_tool_verifies_a_bundle(signed, tool):
    code, said = tool("verify", signed)
    assert code == 0, said
    assert "succeeded" in said


def test_the_public_tool_verifies_copies_without_sealed_parts(signed, tool, tmp_path, key):
    export_public(opened(signed), tmp_path / "public")
    assert not (tmp_path / "public" / "key.sealed").exists()
    code, said = tool("verify", tmp_path / "public")
    assert code == 0, said
    verify_model_signature(opened(tmp_path / "public"), key.verifying_key)


def test_the_public_tool_refuses_what_keylock_refuses(signed, tool):
    (signed / "notes" / "readme.txt").write_bytes(b"!")
    code, said = tool("verify", signed)
    assert code != 0
    assert "notes/readme.txt" in said
    (signed / "notes" / "readme.txt").write_bytes(b"")
    (signed / "more.txt").write_bytes(b"unlisted")
    assert tool("verify", signed)[0] != 0
    with pytest.raises(BundleTamperedError, match=r"more\.txt"):
        opened(signed)


def test_keylock_verifies_what_the_public_tool_signs(folder, tool, key):
    code, said = tool("sign", folder)
    assert code == 0, said
    verify_model_signature(opened(folder), key.verifying_key)
    listed = {
        resource["name"] for resource in statement_of((folder / "model.sig").read_bytes())["predicate"]["resources"]
    }
    assert "key.sealed" in listed
    (folder / "key.sealed").unlink()
    with pytest.raises(BundleTamperedError, match=r"key\.sealed is missing"):
        verify_model_signature(opened(folder), key.verifying_key)


def test_a_signature_of_the_same_bundle_is_the_same_statement_as_the_tools(signed, tool, tmp_path):
    ours = statement_of((signed / "model.sig").read_bytes())
    code, said = tool(
        "sign", signed, "--ignore-paths", str(signed / "key.sealed"), "--ignore-paths", str(signed / "delta.sealed"),
        signature=tmp_path / "theirs.sig",
    )  # fmt: skip
    assert code != 0 or (tmp_path / "theirs.sig").exists(), said
    theirs = statement_of((tmp_path / "theirs.sig").read_bytes())
    # The tool does not know that model.sig is a signature where it writes its own elsewhere.
    kept = [one for one in theirs["predicate"]["resources"] if one["name"] != "model.sig"]
    assert kept == ours["predicate"]["resources"]
    assert {"_type", "predicateType"} <= {name for name in ours if ours[name] == theirs[name]}
    assert ours["predicate"]["serialization"].keys() == theirs["predicate"]["serialization"].keys()


def test_both_forms_are_signed_and_copies_keep_the_signature(bundle_path, tmp_path, key, signing_key):
    before = opened(bundle_path).signed_manifest()
    add_model_signature(opened(bundle_path), key)
    add_model_signature(opened(bundle_path), key)
    again = open_bundle(bundle_path, trusted=[signing_key.verifying_key])
    assert again.signed_manifest() == before
    assert again.has_key
    verify_model_signature(again, key.verifying_key)
    for copy in (tmp_path / "copy", tmp_path / "copy.klb"):
        export_public(again, copy)
        verify_model_signature(opened(copy), key.verifying_key)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_resealing_removes_a_signature_that_fits_no_more(signed, seed, signing_key, tmp_path):
    reseal(opened(signed), seed, KeyFile.create(tmp_path / "new"), signing_key=signing_key)
    assert opened(signed).model_signature() is None


def test_the_sealed_key_is_ignored_and_guarded_by_the_manifest(signed):
    (signed / "key.sealed").write_bytes(b"{}")
    with pytest.raises(BundleTamperedError, match=r"key\.sealed"):
        opened(signed)


def test_every_changed_byte_is_refused(signed, key):
    raw = (signed / "model.sig").read_bytes()
    for place in range(0, len(raw), 97):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        (signed / "model.sig").write_bytes(changed)
        bundle = opened(signed)
        try:
            verify_model_signature(bundle, key.verifying_key)
        except BundleError:
            continue
        # What is left are names of fields that say nothing, which the format tells verifiers to ignore.
        signed_part = {name: json.loads(changed)["dsseEnvelope"][name] for name in ("payload", "payloadType")}
        assert signed_part == {name: json.loads(raw)["dsseEnvelope"][name] for name in signed_part}


@pytest.mark.parametrize("curve", CURVES)
def test_all_curves_of_the_specification_are_read(folder, curve, key):
    statement = statement_of(make_model_signature(opened(folder), key))
    bundle, other = signature_over(statement, curve)
    check(folder, bundle, other)
    own = EcdsaSigningKey(ec.generate_private_key(CURVES[curve]))
    add_model_signature(opened(folder), own)
    verify_model_signature(opened(folder), own.verifying_key)


def test_fields_of_later_versions_are_ignored(folder, key):
    statement = statement_of(make_model_signature(opened(folder), key))
    statement["predicate"]["model_card"] = {"x": 1}
    bundle, other = signature_over(statement)
    bundle["more"] = [1]
    check(folder, bundle, other)


def drop(statement):
    statement["predicate"]["resources"].pop()


def add(statement):
    statement["predicate"]["resources"].append({"name": "more.bin", "algorithm": "sha256", "digest": "00" * 32})


def twice(statement):
    statement["predicate"]["resources"].append(statement["predicate"]["resources"][0])


def other_digest(statement):
    statement["predicate"]["resources"][0]["digest"] = "00" * 32


def climb(statement):
    statement["predicate"]["resources"][0]["name"] = "../manifest.json"


def ignore_manifest(statement):
    drop_named(statement, "manifest.json")
    statement["predicate"]["serialization"]["ignore_paths"].append("manifest.json")


def drop_named(statement, name):
    resources = statement["predicate"]["resources"]
    resources[:] = [one for one in resources if one["name"] != name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, "weights.safetensors is not listed"),
        (add, "more.bin is missing"),
        (twice, "lists a file twice"),
        (other_digest, "differs from what model.sig lists"),
        (climb, "is missing"),
        (ignore_manifest, "manifest.json is not listed"),
    ],
)
def test_a_statement_of_other_files_is_refused(folder, key, change, says):
    statement = statement_of(make_model_signature(opened(folder), key))
    change(statement)
    bundle, other = signature_over(with_root(statement))
    with pytest.raises(BundleTamperedError, match=says.replace(".", r"\.")):
        check(folder, bundle, other)


def test_a_root_digest_of_other_files_is_refused(folder, key):
    statement = statement_of(make_model_signature(opened(folder), key))
    statement["subject"][0]["digest"]["sha256"] = "00" * 32
    bundle, other = signature_over(statement)
    with pytest.raises(BundleTamperedError, match="not that of the files"):
        check(folder, bundle, other)


def of_version(text):
    return lambda statement: statement.update(predicateType=text)


def serialised(**changes):
    return lambda statement: statement["predicate"]["serialization"].update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_version("https://model_signing/Digests/v0.1"), "says something else of the model"),
        (of_version("https://slsa.dev/provenance/v1"), "says something else of the model"),
        (lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"), "a statement that is not of"),
        (lambda statement: statement.pop("predicate"), "a statement that is not of"),
        (lambda statement: statement["subject"].append(statement["subject"][0]), "a statement that is not of"),
        (serialised(method="shards", shard_size=100), "not over the SHA-256 of whole files"),
        (serialised(hash_type="blake2b"), "not over the SHA-256 of whole files"),
    ],
)
def test_signatures_of_another_kind_are_told_apart(folder, key, change, says):
    statement = statement_of(make_model_signature(opened(folder), key))
    change(statement)
    bundle, other = signature_over(statement)
    with pytest.raises(BundleError, match=says) as caught:
        check(folder, bundle, other)
    assert not isinstance(caught.value, BundleTamperedError)


@pytest.mark.parametrize("hash_type", ["--blake3", "shards"])
def test_what_the_tool_makes_in_another_way_is_told_apart(folder, key, hash_type):
    model_signing = pytest.importorskip("model_signing", reason="pip install '.[dev]' brings the public tool")
    private = folder.parent / "oms.pem"
    key.write(private)
    how = model_signing.hashing.Config()
    how = (
        how.use_shard_serialization()
        if hash_type == "shards"
        else how.use_file_serialization(hashing_algorithm="blake3")
    )
    how.set_ignored_paths(paths=[folder / "model.sig"])
    signer = model_signing.signing.Config().set_hashing_config(how).use_elliptic_key_signer(private_key=private)
    signer.sign(folder, folder / "model.sig")
    with pytest.raises(BundleError, match="not over the SHA-256 of whole files"):
        verify_model_signature(opened(folder), key.verifying_key)


def test_another_key_is_told_apart(signed):
    other = EcdsaSigningKey.generate().verifying_key
    with pytest.raises(BundleError, match=f"another key.*than the one expected, {other.hint[:16]}"):
        verify_model_signature(opened(signed), other)


def test_a_hint_proves_nothing(folder, key):
    statement = statement_of(make_model_signature(opened(folder), key))
    bundle, _ = signature_over(statement, hint=key.verifying_key.hint)
    with pytest.raises(BundleTamperedError, match="no signature of the key"):
        check(folder, bundle, key.verifying_key)


def test_a_certificate_is_told_apart(signed, key):
    bundle = json.loads((signed / "model.sig").read_bytes())
    bundle["verificationMaterial"] = {"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}
    with pytest.raises(BundleError, match="with certificates and not with a key"):
        check(signed, bundle, key.verifying_key)


@pytest.mark.parametrize("text", ["", "{}", "[]", "x", '{"mediaType": 3}', "{" * 5000, "\x1b[31m"])
def test_something_else_is_refused(folder, key, text):
    with pytest.raises(BundleTamperedError, match="is not a Sigstore bundle"):
        check(folder, text, key.verifying_key)


def test_another_version_of_the_bundle_is_told_apart(signed, key):
    bundle = json.loads((signed / "model.sig").read_bytes())
    bundle["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.9+json\x1b"
    with pytest.raises(BundleError, match="another version") as caught:
        check(signed, bundle, key.verifying_key)
    assert str(caught.value).isprintable()


def test_a_payload_of_another_type_is_refused(folder, key):
    bundle, other = signature_over(b"text", payload_type="text/plain")
    with pytest.raises(BundleError, match="something else than an in-toto statement"):
        check(folder, bundle, other)


def test_without_a_signature_it_is_said(folder, key):
    with pytest.raises(BundleError, match="keylock sign"):
        verify_model_signature(opened(folder), key.verifying_key)


def test_a_signature_is_as_large_as_it_may_be(signed):
    with (signed / "model.sig").open("ab") as file:
        file.truncate(16 * 1024 * 1024 + 1)
    with pytest.raises(BundleTamperedError, match=r"model\.sig has"):
        opened(signed).model_signature()


def test_a_folder_that_cannot_be_written_to_is_said(folder, key, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BundleError, match="No space left"):
        add_model_signature(opened(folder), key)
    assert sorted(path.name for path in folder.parent.iterdir() if path.name.startswith(".")) == []
    assert opened(folder).model_signature() is None


def test_no_file_of_a_bundle_may_take_the_name(content, tmp_path, signing_key):
    files = {**content.files, "model.sig": b"x"}
    with pytest.raises(BundleError, match=r"model\.sig is reserved"):
        write_bundle(tmp_path / "m", content.__class__(**{**vars(content), "files": files}), signing_key=signing_key)


def test_keys_of_other_kinds_and_damaged_ones_are_refused(tmp_path, signing_key):
    signing_key.write(tmp_path / "ed.pem")
    signing_key.verifying_key.write(tmp_path / "ed.pub.pem")
    for name, load in (("ed.pem", EcdsaSigningKey.load), ("ed.pub.pem", EcdsaVerifyingKey.load)):
        with pytest.raises(SignatureError, match="P-256, P-384 or P-521 is needed"):
            load(tmp_path / name)
        with pytest.raises(SignatureError, match="cannot read"):
            load(tmp_path / "none")
        (tmp_path / "bad").write_text("nothing")
        with pytest.raises(SignatureError, match=r"no PEM file|cannot be read"):
            load(tmp_path / "bad")
    private = ec.generate_private_key(ec.SECP256K1())
    kinds = (serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pass"))
    (tmp_path / "locked.pem").write_bytes(private.private_bytes(serialization.Encoding.PEM, *kinds))
    with pytest.raises(SignatureError, match="encrypted with a passphrase"):
        EcdsaSigningKey.load(tmp_path / "locked.pem")
    kinds = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "koblitz.pem").write_bytes(private.private_bytes(serialization.Encoding.PEM, *kinds))
    with pytest.raises(SignatureError, match="of another kind"):
        EcdsaSigningKey.load(tmp_path / "koblitz.pem")
    with pytest.raises(SignatureError, match="give the public one"):
        EcdsaVerifyingKey.load(tmp_path / "koblitz.pem")


def test_a_signing_key_is_opaque(tmp_path, key):
    key.write(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(SignatureError, match="not overwritten"):
        key.write(tmp_path / "key.pem")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)
    assert key.verifying_key.hint[:16] in repr(key)
    assert EcdsaSigningKey.load(tmp_path / "key.pem").verifying_key.hint == key.verifying_key.hint
