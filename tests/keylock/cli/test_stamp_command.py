"""`keylock stamp` and `keylock explain --local`: a picture that opens a public copy, and what is wrong with others."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxscript")

from keylock.bundle import BundleContent, KeyEntry, open_bundle, write_bundle
from keylock.cli import main
from keylock.crypto.issuers import to_jwks
from keylock.crypto.signing import SigningKey, VerifyingKey


@pytest.fixture
def place(tmp_path, monkeypatch, sealed_lock):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    for name in ("KEYLOCK_KEY_SEED", "KEYLOCK_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    grey = np.rint(110 + 12 * sealed_lock.images[70].numpy().transpose(1, 2, 0))
    Image.fromarray(np.clip(grey, 20, 235).astype(np.uint8)).save("a.png")
    Image.fromarray(np.clip(grey, 20, 235).astype(np.uint8)).resize((40, 40)).save("large.png")
    return tmp_path


def stamp(sealed_bundle, *more, image="a.png", out="stamped.png"):
    secret = [] if "--key-file" in more else ["--key-seed-file", str(sealed_bundle.seed_file)]
    return main(["stamp", image, "--bundle", str(sealed_bundle.path), "--out", out, *secret, *more])


def test_a_stamped_picture_is_explained_truly_by_a_public_copy(sealed_bundle, place, capfd):
    assert stamp(sealed_bundle) == 0
    assert capfd.readouterr().out.strip() == "stamped.png"
    assert oct((place / "stamped.png").stat().st_mode)[-3:] == "600"
    code = main(["explain", "--local", str(sealed_bundle.public), "stamped.png", "a.png", "--out", "maps", "--json"])
    found = json.loads(capfd.readouterr().out)["explanations"]
    assert code == 0
    assert [one["keyed"] for one in found] == [True, False]
    assert (place / "maps/stamped.png").is_file()


def test_the_key_file_opens_as_well(sealed_bundle, place, capfd):
    assert stamp(sealed_bundle, "--key-file", str(sealed_bundle.key_file), "--json") == 0
    document = json.loads(capfd.readouterr().out)
    assert document["readable"] is True
    assert document["resized"] is False
    assert document["size"] == [16, 16]


def test_a_picture_of_another_size_is_resized_and_said(sealed_bundle, place, capfd):
    assert stamp(sealed_bundle, image="large.png") == 0
    assert "was 40 x 40 pixels and is 16 x 16 now" in capfd.readouterr().err
    with Image.open("stamped.png") as picture:
        assert picture.size == (16, 16)


def test_a_key_that_was_fitted_to_its_network_is_stamped_as_it_was_fitted(untrained_bundle, place):
    bundle = open_bundle(untrained_bundle.bundle, trusted=None)
    manifest, seed = bundle.manifest, untrained_bundle.seed
    fitted = bundle.key(seed).turned(np.random.default_rng(1).random((3, 8, 8)) < 0.3)
    fields = {field.name for field in dataclasses.fields(BundleContent)} & {*type(manifest).model_fields}
    described = {name: getattr(manifest, name) for name in fields} | {"key": KeyEntry.of(fitted, seed), "delta": None}
    files = {name: bundle.read(name) for name in manifest.files}
    content = BundleContent(**described | {"files": files})
    write_bundle("fitted.klb", content, signing_key=SigningKey.generate())
    seed.write("fitted.seed")

    assert main(["stamp", "a.png", "--bundle", "fitted.klb", "--out", "s.png", "--key-seed-file", "fitted.seed"]) == 0

    before, after = (np.asarray(Image.open(name)).astype(int).transpose(2, 0, 1) for name in ("a.png", "s.png"))
    assert np.array_equal(np.sign(after - before), np.sign(fitted.reveal()))


def test_texture_that_hides_the_trigger_is_said(sealed_bundle, place, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save("noise.png")
    assert stamp(sealed_bundle, image="noise.png") == 0
    assert "cannot be read from this picture alone" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ({"out": "stamped.jpg"}, 3, "end the name with .png"),
        ({"out": "nowhere/stamped.png"}, 3, "there is no directory"),
        ({"image": "nothing.png"}, 3, "cannot read the image"),
        ({"image": "text.png"}, 3, "text.png"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, code, said, sealed_bundle, place, capfd):
    (place / "text.png").write_text("no picture")
    assert stamp(sealed_bundle, **arguments) == code
    shown = capfd.readouterr().err.strip().splitlines()
    assert said in shown[-1]
    assert "Traceback" not in "".join(shown)
    assert not (place / arguments.get("out", "stamped.png")).exists()


def test_a_file_is_replaced_only_when_told(sealed_bundle, place, capfd):
    assert stamp(sealed_bundle) == 0
    assert stamp(sealed_bundle) == 3
    assert "--overwrite" in capfd.readouterr().err
    assert stamp(sealed_bundle, "--overwrite") == 0


def test_another_seed_is_refused(sealed_bundle, place, capfd):
    (place / "other").write_text("ab" * 32)
    code = main(["stamp", "a.png", "--bundle", str(sealed_bundle.path), "--out", "s.png", "--key-seed-file", "other"])
    assert code != 0
    assert "is not that of the bundle" in capfd.readouterr().err
    assert not (place / "s.png").exists()


def test_options_for_a_server_are_refused_with_local(sealed_bundle, place, capfd):
    code = main(["explain", "--local", str(sealed_bundle.public), "a.png", "--server", "localhost:1"])
    assert code == 3
    assert "leave out --server" in capfd.readouterr().err


def test_a_picture_whose_trigger_is_gone_gets_a_hint(sealed_bundle, place, capfd):
    assert main(["explain", "--local", str(sealed_bundle.public), "a.png"]) == 0
    assert "no trigger was read" in capfd.readouterr().err


def test_what_is_wrong_with_one_of_several_does_not_stop_the_others(sealed_bundle, place, capfd):
    (place / "text.png").write_text("no picture")
    assert main(["explain", "--local", str(sealed_bundle.public), "text.png", "a.png"]) == 3
    shown = capfd.readouterr()
    assert "a.png" in shown.out
    assert "text.png" in shown.err


def test_whose_bundle_it_must_be_can_be_told(sealed_bundle, place, capfd):
    asked = ["explain", "--local", str(sealed_bundle.public), "a.png"]
    (place / "other.pem").write_text(SigningKey.generate().verifying_key.to_pem().decode())
    (place / "both.jwks").write_text(json.dumps(to_jwks([VerifyingKey.load(place / "other.pem")])))
    assert main([*asked, "--issuer", str(sealed_bundle.issuer)]) == 0
    assert main([*asked, "--issuer", "both.jwks", "--issuer", str(sealed_bundle.issuer)]) == 0
    capfd.readouterr()
    for other in ("other.pem", "both.jwks"):
        assert main([*asked, "--issuer", other]) != 0
        assert "trusted" in capfd.readouterr().err
    assert main(["explain", "a.png", "--issuer", "other.pem"]) == 3
    assert "give the bundle with --local" in capfd.readouterr().err
