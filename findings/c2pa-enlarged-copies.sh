#!/usr/bin/env bash
# c2pa-python puts enlarged JPEG copies of small pictures into the files that it signs.
#
# Versions: c2pa-python 0.38.1, cryptography 50.0.2, pillow 13.0.0, Python 3.11. Date: 2026-11-30.
# One would guess: signing adds the manifest that was asked for, and a thumbnail, if any, is smaller than the picture.
# What is true: although the manifest does not ask for it, the picture is copied into it as a JPEG of 1,024 pixels a
#   side, however small it is: a file of 84 bytes becomes one of 70,000. An ingredient, which is the picture
#   that this one was made of, is copied likewise: who wanted to name it by its digest gives it away. The setting
#   builder.thumbnail.enabled = false turns both off, and the result is as valid.
# Why our users meet it: content credentials on maps of a few values, and on overlays of images that are not to be
#   shown.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    c2pa-python==0.38.1 cryptography==50.0.2 pillow==13.0.0
cd "$place"
"$place/venv/bin/python" - <<'PY'
import io
import json
from datetime import UTC, datetime, timedelta

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

OFF = {"builder": {"thumbnail": {"enabled": False}}}
NOT_FOR = (
    *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def credentials():
    """Return a certificate that may sign content, by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "Acme"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme")]
    )
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    usage = x509.KeyUsage(digital_signature=True, **dict.fromkeys(NOT_FOR, False))
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical)
    pem = serialization.Encoding.PEM
    written = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return c2pa.C2paSignerInfo("es256", builder.sign(key, hashes.SHA256()).public_bytes(pem), written, None)


def png(colour):
    picture = io.BytesIO()
    image = Image.new("RGB", (8, 8), colour)
    image.putpixel((3, 3), (255, 255, 255))
    image.save(picture, "PNG")
    return picture.getvalue()


PICTURE, SOURCE = png("red"), png("blue")
INFO = credentials()
MANIFEST = {
    "claim_generator_info": [{"name": "example", "version": "1"}],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {"actions": [{"action": "c2pa.opened", "parameters": {"ingredientIds": ["source"]}}]},
        }
    ],
}


def sign(settings):
    """Return the signed picture, and the sizes of the pictures of which its manifest holds copies."""
    context = c2pa.Context(c2pa.Settings.from_dict(settings))
    signed = io.BytesIO()
    with context, c2pa.Signer.from_info(INFO) as signer, c2pa.Builder(json.dumps(MANIFEST), context) as builder:
        ingredient = {"title": "source", "relationship": "parentOf", "label": "source"}
        builder.add_ingredient(json.dumps(ingredient), "image/png", io.BytesIO(SOURCE))
        builder.sign(signer, "image/png", io.BytesIO(PICTURE), signed)
    copies = {}
    with c2pa.Reader("image/png", io.BytesIO(signed.getvalue())) as reader:
        said = json.loads(reader.json())
        manifest = said["manifests"][said["active_manifest"]]
        for name, holder in (("picture", manifest), ("ingredient", manifest["ingredients"][0])):
            if "thumbnail" in holder:
                copy = io.BytesIO()
                reader.resource_to_stream(holder["thumbnail"]["identifier"], copy)
                with Image.open(copy) as opened:
                    copies[name] = (opened.format, *opened.size, opened.convert("RGB").getpixel((5, 5)))
    return signed.getvalue(), said["validation_state"], copies


usual, usual_state, copies = sign({})
without, without_state, none = sign(OFF)
print(f"the picture: 8 x 8 pixels, {len(PICTURE)} bytes; what it was made of: 8 x 8 pixels, {len(SOURCE)} bytes")
print(f"signed: {len(usual)} bytes, {usual_state}, with a copy of:")
for name, (kind, width, height, colour) in copies.items():
    print(f"  the {name}: {kind}, {width} x {height}, colour {colour}")
print(f"signed with thumbnails off: {len(without)} bytes, {without_state}, copies: {none or 'none'}")
assert usual_state == without_state == "Valid"
assert set(copies) == {"picture", "ingredient"} and not none, "other copies are made now"
assert all(copy[1:3] == (1024, 1024) for copy in copies.values()), "copies have another size now"
assert copies["ingredient"][3][2] > 200 > copies["picture"][3][2], "the copies are of something else now"
assert len(usual) > 10 * len(without), "the copies are small now"
PY
echo "as described"
