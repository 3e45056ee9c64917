"""Licenses and keys in texts as mail programs, editors and shells leave them."""

import json
import quopri
import re

import pytest

from keylock.crypto.issuers import load_keys
from keylock.crypto.secrecy import read_secret_text
from keylock.crypto.signing import SigningKey, VerifyingKey
from keylock.errors import LicenseError, SignatureError
from keylock.licensing.pem import MAX_FILE_BYTES, armour, read_token, unarmour
from keylock.text.small_files import decode_text
from keylock.trigger.keys import KeySeed

HEADER = "eyJhbGciOiJFZDI1NTE5Iiwia2lkIjoiYWJjZGVmZ2hpamtsbW5vcCJ9"
TOKEN = f"{HEADER}.{'eyJzdWIiOiJBY21lIEx0ZCJ9-_' * 6}.{'S_-a' * 21}Qg"
OTHER = f"{HEADER}.{'eyJzdWIiOiJPdGhlciBMdGQifQ' * 6}.{'T_-b' * 21}Qg"
FILE = armour(TOKEN)


def quoted(text, mark="> "):
    return "".join(f"{mark}{line}" for line in text.splitlines(keepends=True))


TEXTS = {
    "as it is": FILE,
    "crlf": FILE.replace("\n", "\r\n"),
    "old mac": FILE.replace("\n", "\r"),
    "one line": FILE.replace("\n", ""),
    "spaces": "   " + FILE.replace("\n", "   \n\t"),
    "quoted": quoted(FILE),
    "quoted twice": quoted(quoted(FILE, ">"), "> "),
    "quoted with a bar": quoted(FILE, "| "),
    "mail": f"Dear customer, here it is:\n\n{FILE}\nRegards,\nthe vendor (a.b.c)\n",
    "mail, answered": f"{FILE}\n\nOn Monday you wrote:\n{quoted(FILE)}",
    "wrapped anew": "\n".join(line[i : i + 40] for line in FILE.splitlines() for i in range(0, len(line), 40)),
    "dash": FILE.replace("-----", "\u2014"),
    "dashes": FILE.replace("-----", "\u2014\u2014-"),
    "en dash": FILE.replace("-----", "\u2013 "),
    "spaces that do not break": FILE.replace("KEYLOCK LICENSE", "KEYLOCK\u00a0LICENSE"),
    "hyphens that do not break": FILE.replace("-", "\u2011"),
    "invisible": FILE.replace("\n", "\u200b\n"),
    "quoted-printable": quopri.encodestring(FILE.encode()).decode(),
    "quoted-printable in a mail": quopri.encodestring(f"Grüße = viele:\n{quoted(FILE)}\nund = Ende".encode()).decode(),
    "quoted-printable in lower case": FILE.replace("\n", "=0a\n"),
    "html": "<html><body><p class=MsoNormal>" + "<br>\n".join(FILE.splitlines()) + "<o:p></o:p></p></body></html>",
    "html, a line each": "".join(f"<div style='a-b: c'>{line}&nbsp;</div>\r\n" for line in FILE.splitlines()),
    "html, quoted": "".join(f"&gt; {line}<br/>" for line in FILE.splitlines()),
    "html, hyphens as entities": FILE.replace("-----", "&#45;" * 5),
    "html, dashes as entities": FILE.replace("-----", "&mdash;&mdash;-"),
    "html, broken within": FILE.replace(FILE[60:80], f"{FILE[60:70]}<wbr>{FILE[70:80]}"),
    "beside what looks like a tag": f"if a <b then\n{FILE}\n-> regards <a@b.c>",
    "quoted with initials": quoted(FILE, "JD> "),
    "signed by OpenPGP": re.sub("^-", "- -", FILE, flags=re.MULTILINE),
    "marks of direction": "\u200e" + FILE.replace("\n", "\u200f\n").replace("KEYLOCK", "\u2068KEYLOCK"),
    "json": json.dumps({"license": FILE}),
    "json of windows": json.dumps({"license": FILE.replace("\n", "\r\n")}),
    "no spaces": FILE.replace(" ", ""),
    "fully encoded": "".join(f"={ord(char):02X}" if char in "-_." else char for char in FILE),
    "token": TOKEN,
    "token with spaces": f"\n {TOKEN}\n\n",
    "token, wrapped": "\n".join(TOKEN[i : i + 70] for i in range(0, len(TOKEN), 70)),
    "token, quoted-printable": quopri.encodestring(TOKEN.encode()).decode(),
    "token, html": f"<p>{TOKEN}&nbsp;</p>",
    "token that ends a sentence": f"Your license is {TOKEN}.",
    "token in angle brackets": f"<{TOKEN}>",
    "token in a mail": f"Your license:\n\n{TOKEN}\n\nIt is for you e.g. and y.o.u.",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_license_is_read_from_any_text_that_has_one(text):
    assert unarmour(text) == TOKEN
    assert read_token(text.encode(), name="a") == TOKEN


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_license_is_read_in_every_encoding_with_a_mark(encoding):
    assert read_token(FILE.encode(encoding), name="a") == TOKEN


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_both_orders_of_utf_16_are_read(mark):
    encoded = FILE.encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")

    assert read_token(mark + encoded, name="a") == TOKEN


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_read(encoding):
    assert read_token(FILE.encode(encoding), name="a") == TOKEN
    assert decode_text("é\n".encode()) == "é\n"


def test_a_license_is_read_from_a_mail_in_another_encoding():
    assert read_token(f"Grüße\n{FILE}".encode("latin-1"), name="a") == TOKEN


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FILE + armour(OTHER), "there are 2 licenses in one text"),
        (f"{FILE}\n{quoted(armour(OTHER))}", "there are 2 licenses in one text"),
        (f"{TOKEN}\n and {OTHER} too", "there are 2 licenses in one text"),
        (FILE.rpartition("-----END")[0], "it is cut off: its last line is missing"),
        (FILE.partition("\n")[2], "it is cut off: its first line is missing"),
        (FILE[:100] + FILE, "it is cut off: its last line is missing"),
        (FILE.replace("-_", "\u2014"), "turned hyphens in it into dashes"),
        ("hello", "holds no license token"),
        ("", "holds no license token"),
        ("a.b.c", "holds no license token"),
        (armour("hello"), "holds no license token"),
        (FILE + " " * MAX_FILE_BYTES, "is larger than any license file"),
    ],
)
def test_a_text_without_one_license_is_refused(text, says):
    with pytest.raises(LicenseError, match=says) as error:
        read_token(text.encode(), name="acme.license")

    assert error.value.message.startswith(("acme.license", "the license"))
    assert TOKEN not in error.value.message


def test_a_long_text_of_dashes_costs_little():
    for text in (
        "-" * MAX_FILE_BYTES,
        "-----BEGIN " * 10_000,
        "> " * 60_000,
        "=\n" * 60_000,
        "<a " * 40_000,
        "<a-" + "b-" * 60_000,
    ):
        with pytest.raises(LicenseError):
            read_token(text.encode(), name="a")


KEY_TEXTS = {
    "crlf": lambda pem: pem.replace("\n", "\r\n").encode(),
    "utf-16": lambda pem: pem.encode("utf-16"),
    "mark": lambda pem: pem.encode("utf-8-sig"),
    "mail": lambda pem: f"our key:\n{quoted(pem)}\nregards".encode(),
    "long mail": lambda pem: (f"our key:\n{pem}\n" + "regards\n" * 2000).encode(),
    "dashes": lambda pem: pem.replace("-----", "\u2014").encode(),
    "quoted-printable": lambda pem: quopri.encodestring(pem.encode()),
}


@pytest.mark.parametrize("change", KEY_TEXTS.values(), ids=KEY_TEXTS)
def test_a_public_key_is_read_from_such_texts_too(tmp_path, change):
    key = SigningKey.generate().verifying_key
    path = tmp_path / "issuer.pub.pem"
    path.write_bytes(change(key.to_pem().decode()))

    assert VerifyingKey.load(path) == key
    assert load_keys(path) == (key,)


def test_two_public_keys_in_one_text_are_refused(tmp_path):
    path = tmp_path / "issuer.pub.pem"
    path.write_bytes(b"".join(SigningKey.generate().verifying_key.to_pem() for _ in range(2)))

    with pytest.raises(SignatureError, match="there are 2 of them in one text"):
        VerifyingKey.load(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_seed_is_the_same_in_every_encoding(tmp_path, encoding):
    path = tmp_path / "seed"
    path.write_bytes("correct horse battery\r\n".encode(encoding))

    assert read_secret_text(path) == "correct horse battery"
    assert KeySeed.from_file(path).id == KeySeed.from_text("correct horse battery").id


def test_what_is_no_text_is_told_apart():
    assert decode_text(b"") == ""
    with pytest.raises(UnicodeDecodeError):
        decode_text(b"\xe9")
    with pytest.raises(UnicodeDecodeError):
        decode_text(b"\xff\xfe\x00")
