"""A bundle is refused after any one change, and the error names the file. One tampering per test, in both forms."""

import io
import json
import os
import shutil
import struct
import zipfile
import zlib

import pytest

from keylock.bundle import KeyFile, container, open_bundle, seal, write_bundle
from keylock.bundle.container import ArchiveFiles, write_archive
from keylock.bundle.manifest import Manifest, model_digest_of
from keylock.bundle.signature import sign_manifest
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import SigningKey, canonical_json, encode_base64url
from keylock.errors import BundleError, BundleTamperedError, UnsealError
from keylock.trigger.keys import KeySeed

FILES = (
    "graphs/grad_cam.onnx",
    "graphs/predict.onnx",
    "key.sealed",
    "manifest.json",
    "manifest.sig",
    "weights.safetensors",
)


def read_all(path):
    if path.is_dir():
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    files = ArchiveFiles(path)
    return {name: files.read(name) for name in files.names()}


def rewrite(path, files):
    """Replaces all files of a bundle, as an attacker with a good packer would."""
    if path.is_dir():
        shutil.rmtree(path)
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    else:
        with path.open("wb") as file:
            write_archive(file, files)


def refused(path, signing_key):
    with pytest.raises(BundleTamperedError) as caught:
        open_bundle(path, trusted=[signing_key.verifying_key])
    assert caught.value.file in str(caught.value)
    return caught.value.file


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_changed_byte_names_the_file(bundle_path, signing_key, name, where):
    files = read_all(bundle_path)
    content = bytearray(files[name])
    position = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[where]
    content[position] ^= 0x01
    rewrite(bundle_path, files | {name: bytes(content)})
    assert refused(bundle_path, signing_key) == name


@pytest.mark.parametrize("name", FILES)
def test_changed_byte_that_keeps_the_old_checksum_names_the_file(tmp_path, content, signing_key, seed, key_file, name):
    path = tmp_path / "model.klb"
    write_bundle(path, content, signing_key=signing_key, seed=seed, sealer=key_file)
    raw = bytearray(path.read_bytes())
    raw[ArchiveFiles(path)._members[name].start + 3] ^= 0x01
    path.write_bytes(raw)
    assert refused(path, signing_key) == name


@pytest.mark.parametrize("name", FILES)
def test_appended_byte_names_the_file(bundle_path, signing_key, name):
    files = read_all(bundle_path)
    rewrite(bundle_path, files | {name: files[name] + b"\n"})
    assert refused(bundle_path, signing_key) == name


@pytest.mark.parametrize("name", FILES)
def test_emptied_file_names_the_file(bundle_path, signing_key, name):
    rewrite(bundle_path, read_all(bundle_path) | {name: b""})
    assert refused(bundle_path, signing_key) == name


@pytest.mark.parametrize("name", ["graphs/predict.onnx", "weights.safetensors", "notes/readme.txt"])
def test_removed_file_is_named(bundle_path, signing_key, name):
    files = read_all(bundle_path)
    del files[name]
    rewrite(bundle_path, files)
    assert refused(bundle_path, signing_key) == name


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
def test_removed_manifest_or_signature_is_named(bundle_path, signing_key, name):
    files = read_all(bundle_path)
    del files[name]
    rewrite(bundle_path, files)
    with pytest.raises(BundleError, match=f"has no {name}"):
        open_bundle(bundle_path, trusted=[signing_key.verifying_key])


@pytest.mark.parametrize("name", ["extra.txt", "graphs/zzz.onnx", "notes/more/deep.bin"])
def test_added_file_is_named(bundle_path, signing_key, name):
    rewrite(bundle_path, read_all(bundle_path) | {name: b"more"})
    assert refused(bundle_path, signing_key) == name


def test_sealed_key_added_to_a_bundle_without_one_is_named(tmp_path, content, signing_key, seed, key_file):
    write_bundle(tmp_path / "model", content, signing_key=signing_key)
    model_digest = open_bundle(tmp_path / "model", trusted=None).manifest.model_digest
    sealed = seal(seed, model_digest=model_digest, issuer=signing_key.verifying_key, sealer=key_file)
    (tmp_path / "model" / "key.sealed").write_bytes(sealed)
    assert refused(tmp_path / "model", signing_key) == "key.sealed"


def test_swapped_sealed_key_is_named(bundle_path, signing_key, seed, key_file):
    model_digest = open_bundle(bundle_path, trusted=None).manifest.model_digest
    sealed = seal(seed, model_digest=model_digest, issuer=signing_key.verifying_key, sealer=key_file)
    rewrite(bundle_path, read_all(bundle_path) | {"key.sealed": sealed})
    assert refused(bundle_path, signing_key) == "key.sealed"


def test_swapped_files_are_named(bundle_path, signing_key):
    files = read_all(bundle_path)
    one, other = "graphs/grad_cam.onnx", "graphs/predict.onnx"
    rewrite(bundle_path, files | {one: files[other], other: files[one]})
    assert refused(bundle_path, signing_key) == one


def test_manifest_of_another_bundle_of_the_same_issuer_is_refused(
    bundle_path, tmp_path, content_of, seed, signing_key, key_file
):
    other = tmp_path / "other"
    write_bundle(other, content_of(seed, classes=("a", "b", "c")), signing_key=signing_key)
    files = read_all(bundle_path)
    rewrite(bundle_path, files | {"manifest.json": (other / "manifest.json").read_bytes()})
    assert refused(bundle_path, signing_key) == "manifest.json"


def test_bundle_signed_again_by_somebody_else_is_not_trusted(bundle_path, signing_key):
    forger = SigningKey.generate()
    files = read_all(bundle_path)
    rewrite(bundle_path, files | {"manifest.sig": sign_manifest(files["manifest.json"], forger)})
    with pytest.raises(BundleError, match="not among the trusted issuers"):
        open_bundle(bundle_path, trusted=[signing_key.verifying_key])
    with pytest.raises(BundleTamperedError, match="another key than the manifest names"):
        open_bundle(bundle_path, trusted=None)


def test_no_changed_byte_of_the_signature_file_is_accepted(folder, signing_key):
    whole = (folder / "manifest.sig").read_bytes()
    for position in range(len(whole)):
        (folder / "manifest.sig").write_bytes(
            whole[:position] + bytes([whole[position] ^ 0x01]) + whole[position + 1 :]
        )
        assert refused(folder, signing_key) == "manifest.sig"


@pytest.mark.parametrize("by", ["nobody", "forger", "old signature"])
def test_changed_manifest_under_the_vendors_name_is_refused(bundle_path, signing_key, by):
    """The forger keeps the vendor's public key and adapts every digest; the signature is all that is missing."""
    files = read_all(bundle_path)
    raw = files["manifest.json"].replace(b"shapes", b"shaped")
    signature = json.loads(files["manifest.sig"]) | {"manifest": digest_of(raw)}
    if by == "nobody":
        signature["signature"] = "A" * 86
    elif by == "forger":
        signature["signature"] = json.loads(sign_manifest(raw, SigningKey.generate()))["signature"]
    rewrite(bundle_path, files | {"manifest.json": raw, "manifest.sig": canonical_json(signature)})
    assert refused(bundle_path, signing_key) == "manifest.sig"


def test_signature_made_for_something_else_is_refused(folder, signing_key):
    """What the vendor signs elsewhere, such as a license, never passes for a manifest."""
    document = json.loads((folder / "manifest.sig").read_bytes())
    document["signature"] = encode_base64url(signing_key.sign(document["manifest"].encode()))
    (folder / "manifest.sig").write_bytes(canonical_json(document))
    assert refused(folder, signing_key) == "manifest.sig"


def test_self_signed_bundle_is_whole_but_not_trusted(tmp_path, content, signing_key):
    write_bundle(tmp_path / "model", content, signing_key=SigningKey.generate())
    assert open_bundle(tmp_path / "model", trusted=None).trusted is False
    for trusted in ([signing_key.verifying_key], []):
        with pytest.raises(BundleError, match="not among the trusted"):
            open_bundle(tmp_path / "model", trusted=trusted)


def resign(path, signing_key, **changes):
    """Signs a changed manifest with the true issuer's key: what a faulty program could do."""
    files = read_all(path)
    document = Manifest.model_validate_json(files["manifest.json"]).model_dump(mode="json") | changes
    raw = canonical_json(document)
    rewrite(path, files | {"manifest.json": raw, "manifest.sig": sign_manifest(raw, signing_key)})


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "graphs/../../evil",
        "C:evil",
        "a\\b",
        "graphs//x",
        "",
        ".",
        "..",
        "a/.",
        "a.",
        "a./b",
        ".a",
        "-a",
        "x" * 201,
        "a\n",
    ],
)
def test_path_that_climbs_is_refused_even_when_signed(bundle_path, signing_key, name):
    files = Manifest.model_validate_json(read_all(bundle_path)["manifest.json"]).files
    resign(bundle_path, signing_key, files=files | {name: digest_of(b"")})
    with pytest.raises(BundleError, match="not allowed as the name"):
        open_bundle(bundle_path, trusted=[signing_key.verifying_key])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 3}, "has format 3, this keylock reads 2: upgrade keylock"),
        ({"format_version": 1}, "has format 1, this keylock reads 2: lock the model again"),
        ({"format_version": 0}, "lock the model again"),
        ({"format_version": "2"}, "format_version"),
        ({"format_version": None}, "format_version"),
        ({"delta": {"digest": "sha256:" + "0" * 64, "entries": 0, "keys": 1}}, "delta.entries"),
        ({"delta": {"digest": "sha256:" + "0" * 64, "entries": 1, "keys": 0}}, "delta.keys"),
        ({"delta": {"digest": "sha256:" + "0" * 64, "entries": 1, "keys": 1, "rank": 8}}, "delta.rank"),
        ({"model_digest": "sha256:" + "0" * 64}, "model digest"),
        ({"classes": ["a", "b"]}, "2 classes for 3 logits"),
        ({"classes": ["a", "b", "a"]}, "have the same name"),
        ({"classes": ["a", "b", "cafe\u0301"]}, "must be spelt"),
        ({"classes": ["a", "b", ""]}, "empty name"),
        ({"prediction_graph": "graphs/none.onnx"}, "needed and not listed"),
        ({"surprise": 1}, "surprise"),
        ({"name": "*"}, "name"),
        ({"created": "2026-11-22T00:00:00"}, "created"),
        ({"key": {"id": "0" * 16, "strength": 2.0, "tile": 8}}, "key.strength"),
        ({"key": {"id": "0" * 16, "strength": 0.1, "tile": 8, "derivation": "md5"}}, "key.derivation"),
        ({"classes": ["a", "b", "c\x1b[2J"]}, "control character"),
        ({"keylock_version": "1\n2"}, "printable"),
        ({"training\x1b[2J": 1}, r"training\\x1b"),
        ({"issuer": {"key_id": "somebody", "public_key": {}}}, "another key"),
    ],
)
def test_manifest_that_makes_no_sense_is_refused_even_when_signed(bundle_path, signing_key, changes, says):
    resign(bundle_path, signing_key, **changes)
    with pytest.raises(BundleError, match=says):
        open_bundle(bundle_path, trusted=[signing_key.verifying_key])


def test_a_bundle_of_the_format_before_is_refused_by_a_sentence_that_says_what_to_do(bundle_path, signing_key):
    """It had other fields too, of which nothing is said: what counts is that the model is locked again."""
    document = json.loads(read_all(bundle_path)["manifest.json"])
    del document["delta"]
    raw = json.dumps(document | {"format_version": 1, "adapter": {"digest": "sha256:" + "0" * 64}}).encode()
    rewrite(
        bundle_path, read_all(bundle_path) | {"manifest.json": raw, "manifest.sig": sign_manifest(raw, signing_key)}
    )
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle_path, trusted=[signing_key.verifying_key])
    assert caught.value.message == (
        "the bundle has format 1, this keylock reads 2: lock the model again with this keylock"
    )


@pytest.mark.parametrize("name", ["key.sealed", "delta.sealed", "manifest.json", "manifest.sig"])
def test_manifest_that_lists_reserved_names_is_refused(name, bundle_path, signing_key):
    files = Manifest.model_validate_json(read_all(bundle_path)["manifest.json"]).files
    resign(bundle_path, signing_key, files=files | {name: digest_of(b"")})
    with pytest.raises(BundleError, match="reserved"):
        open_bundle(bundle_path, trusted=[signing_key.verifying_key])


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{", b'{"format_version":2}', b"\xff", b"[" * 100_000])
def test_signed_nonsense_is_refused(bundle_path, signing_key, raw):
    files = read_all(bundle_path)
    rewrite(bundle_path, files | {"manifest.json": raw, "manifest.sig": sign_manifest(raw, signing_key)})
    with pytest.raises(BundleError, match="the manifest cannot be used"):
        open_bundle(bundle_path, trusted=[signing_key.verifying_key])


@pytest.mark.parametrize(("name", "size"), [("manifest.json", 9 * 2**20), ("manifest.sig", 5000)])
def test_oversize_manifest_or_signature_is_not_even_parsed(bundle_path, signing_key, name, size):
    rewrite(bundle_path, read_all(bundle_path) | {name: b" " * size})
    with pytest.raises(BundleTamperedError, match="more than the"):
        open_bundle(bundle_path, trusted=[signing_key.verifying_key])


# Folders


@pytest.fixture
def folder(tmp_path, content, signing_key, seed, key_file):
    write_bundle(tmp_path / "model", content, signing_key=signing_key, seed=seed, sealer=key_file)
    return tmp_path / "model"


def test_folder_with_very_many_files_is_refused(folder, signing_key, monkeypatch):
    monkeypatch.setattr("keylock.bundle.container._MAX_FILES", 5)
    with pytest.raises(BundleError, match="more than 5 files"):
        open_bundle(folder, trusted=[signing_key.verifying_key])


def test_archive_with_very_many_files_is_refused(tmp_path, content, signing_key, monkeypatch):
    write_bundle(tmp_path / "model.klb", content, signing_key=signing_key)
    monkeypatch.setattr("keylock.bundle.container._MAX_FILES", 5)
    with pytest.raises(BundleError, match="more than 5 files"):
        open_bundle(tmp_path / "model.klb", trusted=[signing_key.verifying_key])


def test_link_in_place_of_a_file_is_named(folder, tmp_path, signing_key):
    target = tmp_path / "elsewhere"
    shutil.move(folder / "weights.safetensors", target)
    (folder / "weights.safetensors").symlink_to(target)
    assert refused(folder, signing_key) == "weights.safetensors"


def test_link_in_place_of_a_folder_is_named(folder, tmp_path, signing_key):
    shutil.move(folder / "graphs", tmp_path / "graphs")
    (folder / "graphs").symlink_to(tmp_path / "graphs")
    assert refused(folder, signing_key) == "graphs"


def test_pipe_in_place_of_a_file_is_named_and_not_waited_for(folder, signing_key):
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    assert refused(folder, signing_key) == "weights.safetensors"


def test_strange_name_is_shown_escaped(folder, signing_key):
    (folder / "evil\x1b[2J\n").write_bytes(b"")
    assert refused(folder, signing_key) == r"evil\x1b[2J\n"


def test_file_changed_after_opening_is_refused_on_reading(bundle_path, signing_key, key_file):
    bundle = open_bundle(bundle_path, trusted=[signing_key.verifying_key])
    files = read_all(bundle_path)
    rewrite(bundle_path, {name: content[:-1] + b"!" for name, content in files.items() if content})
    for read in (lambda: bundle.read("weights.safetensors"), lambda: bundle.unseal(key_file), bundle.signed_manifest):
        with pytest.raises(BundleTamperedError):
            read()


# Archives


@pytest.fixture
def archive(tmp_path, content, signing_key, seed, key_file):
    write_bundle(tmp_path / "model.klb", content, signing_key=signing_key, seed=seed, sealer=key_file)
    return tmp_path / "model.klb"


def test_no_changed_byte_of_an_archive_is_accepted(tmp_path, content_of, seed, signing_key):
    """Headers, names, checksums, table of contents and all: every byte of the file counts."""
    path = tmp_path / "model.klb"
    small = {"weights.safetensors": b"w", "graphs/predict.onnx": b"p", "graphs/grad_cam.onnx": b"g"}
    write_bundle(path, content_of(seed, files=small), signing_key=signing_key)
    raw = path.read_bytes()
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 0x01]) + raw[position + 1 :])
        with pytest.raises(BundleError):
            open_bundle(path, trusted=[signing_key.verifying_key])


def test_no_truncated_archive_is_accepted(archive, signing_key):
    raw = archive.read_bytes()
    for length in [*range(0, len(raw), 97), len(raw) - 1]:
        archive.write_bytes(raw[:length])
        with pytest.raises(BundleError):
            open_bundle(archive, trusted=[signing_key.verifying_key])


def test_bytes_before_or_after_the_archive_are_refused(archive, signing_key):
    raw = archive.read_bytes()
    for changed in (b"MZ" + raw, raw + b"\0", raw + raw):
        archive.write_bytes(changed)
        with pytest.raises(BundleError):
            open_bundle(archive, trusted=[signing_key.verifying_key])


def zip_of(files, *, compression=zipfile.ZIP_STORED, prepare=lambda info: None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = compression
            prepare(info)
            archive.writestr(info, content)
    return buffer.getvalue()


def test_zip_bomb_is_refused_without_unpacking_it(archive, signing_key):
    archive.write_bytes(zip_of([("weights.safetensors", bytes(200 << 20))], compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(BundleTamperedError, match="is compressed"):
        open_bundle(archive, trusted=[signing_key.verifying_key])


def test_archive_that_claims_more_than_it_has_is_refused_without_reserving_memory(archive, signing_key):
    raw = bytearray(archive.read_bytes())
    struct.pack_into("<2L", raw, 18, 0xFFFF0000, 0xFFFF0000)
    archive.write_bytes(raw)
    assert refused(archive, signing_key) == "graphs/grad_cam.onnx"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\evil", "link/"])
def test_archive_with_a_climbing_name_is_refused(archive, signing_key, tmp_path, name):
    archive.write_bytes(zip_of([(name, b"evil"), *sorted(read_all(archive).items())]))
    with pytest.raises(BundleTamperedError, match="a name that no bundle uses"):
        open_bundle(archive, trusted=[signing_key.verifying_key])
    assert not list(tmp_path.rglob("*evil*"))


def test_archive_with_a_name_twice_is_refused(archive, signing_key):
    files = sorted(read_all(archive).items())
    with pytest.warns(UserWarning, match="Duplicate name"):
        raw = zip_of([*files, ("weights.safetensors", b"other")], prepare=lambda i: setattr(i, "create_system", 3))
    archive.write_bytes(raw)
    with pytest.raises(BundleTamperedError):
        open_bundle(archive, trusted=[signing_key.verifying_key])


def pack(path, files, **changes):
    """Packs files in the order given, with headers that agree with each other whatever they say."""
    members, body = [], b""
    for name, content in files:
        member = container._Member(name, len(body), changes.get(name, zlib.crc32(content)), len(content))
        members.append(member)
        body += member.local_header() + content
    path.write_bytes(body + container._directory(members, len(body)))


def test_packer_of_these_tests_packs_as_keylock_does(archive):
    raw = archive.read_bytes()
    pack(archive, sorted(read_all(archive).items()))
    assert archive.read_bytes() == raw


def test_archive_in_another_order_is_refused(archive, signing_key):
    pack(archive, sorted(read_all(archive).items(), reverse=True))
    with pytest.raises(BundleTamperedError, match="out of order"):
        open_bundle(archive, trusted=[signing_key.verifying_key])


def test_archive_with_a_hidden_second_copy_is_refused(archive, signing_key):
    files = [("weights.safetensors", b"hidden"), *read_all(archive).items()]
    pack(archive, sorted(files, key=lambda item: item[0]))
    with pytest.raises(BundleTamperedError, match="out of order"):
        open_bundle(archive, trusted=[signing_key.verifying_key])


def test_archive_with_a_wrong_checksum_in_all_its_headers_is_refused(archive, signing_key):
    pack(archive, sorted(read_all(archive).items()), **{"weights.safetensors": 1})
    assert refused(archive, signing_key) == "weights.safetensors"


def test_archive_packed_by_another_program_is_refused(archive, signing_key):
    archive.write_bytes(zip_of(sorted(read_all(archive).items()), prepare=lambda i: setattr(i, "extra", b"\1\0\2\0ab")))
    with pytest.raises(BundleTamperedError):
        open_bundle(archive, trusted=[signing_key.verifying_key])


def test_archive_is_a_zip_that_others_read(archive):
    with zipfile.ZipFile(archive) as other:
        assert other.testzip() is None
        assert {name: other.read(name) for name in other.namelist()} == read_all(archive)


# The key


def test_unseal_refuses_the_key_of_another_model_of_the_same_vendor(
    tmp_path, content, content_of, seed, signing_key, key_file
):
    """The strongest forger: the vendor's own signature over a manifest that names another model's sealed key."""
    files = dict(content.files) | {"weights.safetensors": b"other weights"}
    write_bundle(tmp_path / "one", content, signing_key=signing_key, seed=seed, sealer=key_file)
    write_bundle(tmp_path / "two", content_of(seed, files=files), signing_key=signing_key, seed=seed, sealer=key_file)
    sealed = (tmp_path / "one" / "key.sealed").read_bytes()
    (tmp_path / "two" / "key.sealed").write_bytes(sealed)
    resign(tmp_path / "two", signing_key, sealed_key=digest_of(sealed))
    bundle = open_bundle(tmp_path / "two", trusted=[signing_key.verifying_key])
    with pytest.raises(UnsealError, match="belongs to another model"):
        bundle.unseal(key_file)


def test_bundle_that_somebody_else_signs_as_his_own_does_not_unseal(bundle_path, key_file):
    """A server that trusts any issuer would honour the thief's licenses; so the key opens for its vendor alone."""
    thief = SigningKey.generate()
    issuer = {"key_id": thief.key_id, "public_key": thief.verifying_key.to_jwk()}
    resign(bundle_path, thief, issuer=issuer)
    stolen = open_bundle(bundle_path, trusted=None)
    assert stolen.issuer == thief.verifying_key
    with pytest.raises(UnsealError, match="another model or issuer"):
        stolen.unseal(key_file)


def test_unseal_and_key_refuse_another_seed(folder, signing_key, key_file):
    other = KeySeed(bytes(32))
    model_digest = open_bundle(folder, trusted=None).manifest.model_digest
    sealed = seal(other, model_digest=model_digest, issuer=signing_key.verifying_key, sealer=key_file)
    (folder / "key.sealed").write_bytes(sealed)
    resign(folder, signing_key, sealed_key=digest_of(sealed))
    bundle = open_bundle(folder, trusted=[signing_key.verifying_key])
    for act in (lambda: bundle.unseal(key_file), lambda: bundle.key(other)):
        with pytest.raises(UnsealError, match="was locked with"):
            act()


def test_unseal_with_the_wrong_key_file(bundle_path, signing_key, tmp_path):
    bundle = open_bundle(bundle_path, trusted=[signing_key.verifying_key])
    with pytest.raises(UnsealError, match="does not open"):
        bundle.unseal(KeyFile.create(tmp_path / "another"))


def test_model_digest_covers_weights_and_graphs_alone():
    files = {"weights.safetensors": digest_of(b"w"), "graphs/a.onnx": digest_of(b"a")}
    assert model_digest_of(files | {"notes.txt": digest_of(b"n")}) == model_digest_of(files)
    assert model_digest_of(files | {"graphs/a.onnx": digest_of(b"b")}) != model_digest_of(files)
    with pytest.raises(BundleError, match="needs weights"):
        model_digest_of({"notes.txt": digest_of(b"n")})
