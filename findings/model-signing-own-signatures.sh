#!/usr/bin/env bash
# The public tool of OpenSSF Model Signing does not start as pip installs it, and refuses two kinds of its signatures.
#
# Versions: model-signing 1.1.1, sigstore 4.5.1, pyOpenSSL 26.4.0, Python 3.11. Date: 2026-11-30.
# One would guess: `pip install model-signing` is enough, and what the tool signs it verifies, as it reads from the
#   signature how the files were digested.
# What is true: it imports OpenSSL, which it does not ask for and sigstore of today does not bring. With pyOpenSSL
#   beside it, signatures over SHA-256 and BLAKE3 of whole files verify. One over BLAKE2b is written as `blake2b` and read as
#   `blake2` alone: "Unsupported hashing method". The size of shards comes back as a float, which cannot be used as one.
# Why our users meet it: they verify `model.sig` of a bundle with this tool, and may sign bundles with it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
pip=("$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" model-signing==1.1.1 sigstore==4.5.1
cd "$place"
if said=$("$place/venv/bin/python" -m model_signing --help 2>&1); then
    echo "it starts as it is installed now"
    exit 1
fi
echo "as installed: ${said##*$'\n'}"
"${pip[@]}" pyopenssl==26.4.0
"$place/venv/bin/python" - <<'PY'
from pathlib import Path

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

key = ec.generate_private_key(ec.SECP256R1())
Path("key.pem").write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
Path("pub.pem").write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
Path("model").mkdir()
Path("model/weights").write_bytes(b"weights")
found = {}
for kind in ("sha256", "blake3", "blake2", "shards"):
    how = hashing.Config()
    how = how.use_shard_serialization() if kind == "shards" else how.use_file_serialization(hashing_algorithm=kind)
    signing.Config().set_hashing_config(how).use_elliptic_key_signer(private_key="key.pem").sign("model", kind)
    try:
        verifying.Config().use_elliptic_key_verifier(public_key="pub.pem").verify("model", kind)
        found[kind] = "verified"
    except (TypeError, ValueError) as error:
        found[kind] = f"{type(error).__name__}: {error}"
    print(f"{kind}: {found[kind]}")
assert found["sha256"] == found["blake3"] == "verified"
assert found["blake2"].startswith("ValueError: Unsupported hashing method"), "signatures over BLAKE2b verify now"
assert found["shards"].startswith("TypeError: 'float'"), "signatures over shards verify now"
PY
echo "as described"
