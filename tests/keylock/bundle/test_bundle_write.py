"""write.py, read.py, public.py: what is written reads back, appears whole or not at all, and copies lose the key."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest

from keylock.bundle import ExplainerEntry, Figure, Passphrase, export_public, open_bundle, write_bundle
from keylock.crypto.signing import SigningKey
from keylock.errors import BundleError, KeySeedError, UnsealError
from keylock.trigger.keys import Key, KeySeed


def test_bundle_reads_back(bundle_path, content, signing_key, seed, key_file):
    with open_bundle(bundle_path, trusted=[SigningKey.generate().verifying_key, signing_key.verifying_key]) as bundle:
        assert bundle.trusted
        assert bundle.issuer == signing_key.verifying_key
        for name, expected in content.files.items():
            assert bundle.read(name) == expected
            assert bundle.manifest.files[name] == "sha256:" + hashlib.sha256(expected).hexdigest()
        assert bundle.manifest.classes == content.classes
        assert bundle.manifest.preprocessing == content.preprocessing
        assert bundle.manifest.explainers == content.explainers
        assert bundle.manifest.explainer("grad_cam") == content.explainers[0]
        assert bundle.manifest.explainer("lime") is None
        assert bundle.manifest.created.isoformat() == "2026-11-22T12:30:15+00:00"
        assert bundle.has_key
        assert bundle.unseal(key_file) == seed
    document = json.loads(bundle.signed_manifest()[0])
    counted = {name: digest for name, digest in document["files"].items() if not name.startswith("notes")}
    text = json.dumps(counted, sort_keys=True, separators=(",", ":")).encode()
    assert document["model_digest"] == "sha256:" + hashlib.sha256(text).hexdigest()


def test_key_of_a_bundle_is_the_key_it_was_locked_with(bundle_path, content, seed):
    key = open_bundle(bundle_path, trusted=None).key(seed)
    expected = Key.derive(seed, shape=(3, 16, 16), std=(0.25, 0.25, 0.25), strength=8 / 255, tile=8)
    np.testing.assert_array_equal(key.reveal(), expected.reveal())
    assert key == expected


def test_both_forms_hold_the_same_manifest(tmp_path, content, signing_key):
    one = write_bundle(tmp_path / "model", content, signing_key=signing_key)
    other = write_bundle(tmp_path / "model.klb", content, signing_key=signing_key)
    assert one == other


def test_archive_is_the_same_bytes_every_time(tmp_path, content, signing_key):
    for name in ("a.klb", "b.klb"):
        write_bundle(tmp_path / name, content, signing_key=signing_key)
    assert (tmp_path / "a.klb").read_bytes() == (tmp_path / "b.klb").read_bytes()


def test_files_may_be_given_as_paths(tmp_path, content, content_of, seed, signing_key):
    weights = tmp_path / "w.bin"
    weights.write_bytes(content.files["weights.safetensors"])
    by_path = content_of(seed, files=dict(content.files) | {"weights.safetensors": weights})
    assert write_bundle(tmp_path / "a.klb", by_path, signing_key=signing_key) == write_bundle(
        tmp_path / "b", content, signing_key=signing_key
    )


def test_bundle_without_a_seed_has_no_key(tmp_path, content, signing_key, key_file):
    write_bundle(tmp_path / "model", content, signing_key=signing_key)
    bundle = open_bundle(tmp_path / "model", trusted=None)
    assert not bundle.has_key
    assert bundle.manifest.sealed_key is None
    with pytest.raises(UnsealError, match="public copy without a key"):
        bundle.unseal(key_file)


def test_passphrase_seals_too(tmp_path, content, signing_key, seed):
    passphrase = Passphrase("a long passphrase")
    write_bundle(tmp_path / "model.klb", content, signing_key=signing_key, seed=seed, sealer=passphrase)
    assert open_bundle(tmp_path / "model.klb", trusted=None).unseal(passphrase) == seed


def test_no_file_of_a_bundle_holds_the_seed(bundle_path, seed):
    paths = [bundle_path] if bundle_path.is_file() else [p for p in bundle_path.rglob("*") if p.is_file()]
    for path in paths:
        assert seed.reveal().hex().encode() not in path.read_bytes()


def test_seed_in_the_settings_is_refused(tmp_path, content_of, seed, signing_key, key_file):
    content = content_of(seed, training={"arguments": ["--key-seed", seed.reveal().hex()]})
    with pytest.raises(KeySeedError, match="in the settings") as caught:
        write_bundle(tmp_path / "model", content, signing_key=signing_key, seed=seed, sealer=key_file)
    assert seed.reveal().hex() not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_seed_of_another_key_or_without_a_sealer_is_refused(tmp_path, content, signing_key, seed, key_file):
    with pytest.raises(KeySeedError, match="is not the one"):
        write_bundle(tmp_path / "model", content, signing_key=signing_key, seed=KeySeed(bytes(32)), sealer=key_file)
    with pytest.raises(KeySeedError, match="never holds a bare key"):
        write_bundle(tmp_path / "model", content, signing_key=signing_key, seed=seed)


def looping(graph, predictions):
    return ExplainerEntry(name="x", runtime="loop", graph=graph, predictions=predictions)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "my model"}, "name"),
        ({"classes": ("a", "b")}, "2 classes for 3 logits"),
        ({"classes": ("a", "b", "c\r")}, "control character"),
        ({"explainers": (ExplainerEntry(name="x", runtime="torch"),) * 2}, "listed twice"),
        ({"prediction_graph": "graphs/missing.onnx"}, "needed and not listed"),
        ({"files": {"weights.safetensors": b""}}, "needed and not listed"),
        ({"explainers": (looping("graphs/predict.onnx", "graphs/missing.onnx"),)}, "missing.onnx is needed"),
        ({"files": {"notes.txt": b""}}, "needs weights"),
        ({"files": {"../weights.safetensors": b""}}, "not allowed as the name"),
        ({"files": {"key.sealed": b"", "graphs/a": b""}}, "needed|reserved"),
        ({"created": datetime(2026, 11, 22)}, "created"),
        ({"training": {"loss": float("nan")}}, "NaN or infinite"),
        ({"training": {"object": object()}}, "training"),
    ],
)
def test_content_that_makes_no_bundle_is_refused(tmp_path, content_of, seed, signing_key, changes, says):
    with pytest.raises(BundleError, match=says):
        write_bundle(tmp_path / "model", content_of(seed, **changes), signing_key=signing_key)
    assert not list(tmp_path.iterdir())


def test_missing_source_file_is_named(tmp_path, content, content_of, seed, signing_key):
    files = dict(content.files) | {"graphs/predict.onnx": tmp_path / "missing.onnx"}
    with pytest.raises(BundleError, match=r"cannot read .*missing\.onnx for the bundle's graphs/predict\.onnx"):
        write_bundle(tmp_path / "model", content_of(seed, files=files), signing_key=signing_key)


def test_figure_must_be_a_number():
    with pytest.raises(ValueError, match="finite"):
        Figure(name="keyed_pcc", value=float("nan"))


def test_explainer_with_a_graph_is_onnx_and_no_other():
    with pytest.raises(ValueError, match="graph is needed"):
        ExplainerEntry(name="grad_cam")
    with pytest.raises(ValueError, match="graph is needed"):
        ExplainerEntry(name="grad_cam", runtime="torch", graph="graphs/a.onnx")


def test_existing_bundle_is_replaced_only_when_asked(bundle_path, content_of, seed, signing_key):
    newer = content_of(seed, classes=("a", "b", "c"))
    with pytest.raises(BundleError, match="exists"):
        write_bundle(bundle_path, newer, signing_key=signing_key)
    assert open_bundle(bundle_path, trusted=None).manifest.classes[0] == "circle"
    write_bundle(bundle_path, newer, signing_key=signing_key, overwrite=True)
    assert open_bundle(bundle_path, trusted=None).manifest.classes[0] == "a"
    assert [path.name for path in bundle_path.parent.iterdir()] == [bundle_path.name]


def test_overwriting_never_removes_what_is_no_bundle(tmp_path, content, signing_key):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.tex").write_text("years of work")
    (tmp_path / "notes.txt").write_text("more")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text("{}")
    for name in ("web", "thesis", "notes.txt", "link"):
        with pytest.raises(BundleError, match="is not a bundle"):
            write_bundle(tmp_path / name, content, signing_key=signing_key, overwrite=True)
    assert (precious / "chapter1.tex").read_text() == "years of work"


def test_overwriting_never_follows_a_link(bundle_path, content_of, seed, signing_key, tmp_path):
    link = tmp_path / ("link" + bundle_path.suffix)
    link.symlink_to(bundle_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        write_bundle(link, content_of(seed, classes=("a", "b", "c")), signing_key=signing_key, overwrite=True)
    assert open_bundle(bundle_path, trusted=None).manifest.classes[0] == "circle"


def test_empty_folder_is_a_free_place(tmp_path, content, signing_key):
    (tmp_path / "model").mkdir()
    write_bundle(tmp_path / "model", content, signing_key=signing_key)
    assert open_bundle(tmp_path / "model", trusted=None).manifest.name == "shapes"


def test_place_without_a_folder_above_is_refused(tmp_path, content, signing_key):
    with pytest.raises(BundleError, match="there is no folder"):
        write_bundle(tmp_path / "missing" / "model", content, signing_key=signing_key)


def test_relative_place(tmp_path, content, signing_key, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bundle("model.klb", content, signing_key=signing_key)
    assert open_bundle("model.klb", trusted=None).manifest.name == "shapes"


def test_files_follow_the_umask(tmp_path, content, signing_key):
    old_mask = os.umask(0o022)
    try:
        write_bundle(tmp_path / "model", content, signing_key=signing_key)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "model" / "manifest.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("out", ["public", "public.klb"])
def test_public_copy_is_signed_and_has_no_key(bundle_path, signing_key, key_file, tmp_path, out):
    original = open_bundle(bundle_path, trusted=[signing_key.verifying_key])
    export_public(original, tmp_path / out)
    copy = open_bundle(tmp_path / out, trusted=[signing_key.verifying_key])
    assert copy.manifest == original.manifest
    assert not copy.has_key
    assert copy.manifest.sealed_key is not None
    with pytest.raises(UnsealError, match="public copy"):
        copy.unseal(key_file)
    raw = b"".join(p.read_bytes() for p in [tmp_path / out, *(tmp_path / out).glob("**/*")] if p.is_file())
    assert original.sealed_key() not in raw


def test_public_copy_does_not_overwrite_unasked(bundle_path, tmp_path):
    original = open_bundle(bundle_path, trusted=None)
    export_public(original, tmp_path / "copy.klb")
    with pytest.raises(BundleError, match="exists"):
        export_public(original, tmp_path / "copy.klb")
    export_public(original, tmp_path / "copy.klb", overwrite=True)


def test_public_copy_never_replaces_the_original(bundle_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (bundle_path, bundle_path.name, tmp_path / "." / ".." / tmp_path.name / bundle_path.name):
        with pytest.raises(BundleError, match="key would be lost"):
            export_public(open_bundle(bundle_path, trusted=None), out, overwrite=True)
    assert open_bundle(bundle_path, trusted=None).has_key


def test_reading_an_unlisted_file_is_refused(bundle_path):
    bundle = open_bundle(bundle_path, trusted=None)
    for name in ("manifest.json", "key.sealed", "../x", "none"):
        with pytest.raises(BundleError, match="has no file"):
            bundle.read(name)


def test_what_is_no_bundle_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "nothing").write_bytes(b"")
    for name, says in [
        ("empty", "has no manifest.json"),
        ("text", "is not a bundle"),
        ("nothing", "is not a bundle"),
        ("none", "there is no bundle"),
    ]:
        with pytest.raises(BundleError, match=says):
            open_bundle(tmp_path / name, trusted=None)


def test_bundles_need_no_torch():
    program = (
        "import sys, keylock.bundle; raise SystemExit(bool({'torch', 'sqlalchemy', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
