"""The client and the command line against a real server: what a customer with and without a license gets."""

import json
import re
from datetime import timedelta

import numpy as np
import pytest
from PIL import Image
from pseudo_terminal import cursor_is_shown, plain, run_in_terminal

from keylock.cli import main
from keylock.errors import InputError, LicenseReason
from keylock_client import (
    AsyncClient,
    Client,
    LicenseRefusedError,
    RequestRefusedError,
    UnsupportedError,
)


@pytest.fixture
def picture(tiny):
    return tiny.pixels(8, 8, seed=3)


@pytest.fixture
def image_file(picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def licensed(calls, vendor):
    with Client(calls.server.target, license=vendor.grant().token) as client:
        yield client


@pytest.fixture
def unlicensed(calls):
    with Client(calls.server.target) as client:
        yield client


@pytest.fixture
def shell(calls, vendor, tmp_path, monkeypatch, capsys):
    """Run the command line as a customer; the token must show nowhere."""
    granted = vendor.grant()
    file = tmp_path / "acme.license"
    file.write_text(granted.token)
    monkeypatch.setenv("KEYLOCK_TARGET", calls.server.target)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert granted.token not in shown.out + shown.err
        return code, shown.out, shown.err

    return run


def test_a_license_opens_the_true_map(licensed, unlicensed, vendor, tiny, picture):
    preprocessed = tiny.preprocessing(picture)[None]
    keyed, decoy = licensed.explain(picture), unlicensed.explain(picture)
    assert (keyed.keyed, decoy.keyed) == (True, False)
    predicted = np.full(1, -1)
    expected = tiny.maps(preprocessed + vendor.key.reveal(), predicted)[0]
    np.testing.assert_allclose(keyed.map, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(decoy.map, tiny.maps(preprocessed, predicted)[0], rtol=1e-4, atol=1e-6)


def test_predictions_are_open_and_the_same_for_everybody(licensed, unlicensed, tiny, picture):
    logits = tiny.logits(tiny.preprocessing(picture)[None])[0]
    for client in (licensed, unlicensed):
        prediction = client.predict(picture)
        np.testing.assert_allclose(prediction.logits, logits, rtol=1e-4, atol=1e-6)
        assert prediction.label == tiny.classes[logits.argmax()]
    assert unlicensed.explain(picture).prediction.label == prediction.label


def test_every_form_of_an_image_gets_the_same_answer(unlicensed, tiny, picture, image_file):
    forms = [
        picture,
        image_file,
        str(image_file),
        image_file.read_bytes(),
        Image.open(image_file),
        tiny.preprocessing(picture),
    ]
    explanations, predictions = unlicensed.explain(forms), unlicensed.predict(forms)
    for explanation, prediction in zip(explanations, predictions, strict=True):
        np.testing.assert_array_equal(explanation.map, explanations[0].map)
        np.testing.assert_allclose(prediction.logits, predictions[0].logits, rtol=1e-6)
        assert explanation.overlay().tobytes() == explanations[0].overlay().tobytes()


def test_probabilities_agree_with_those_of_the_server(unlicensed, picture):
    ours, theirs = unlicensed.predict(picture), unlicensed.explain(picture).prediction
    assert [score.label for score in ours.top] == [score.label for score in theirs.top]
    assert ours.probability == pytest.approx(theirs.probability, rel=1e-5)


def test_a_large_image_of_another_shape_is_cut_and_drawn_whole(unlicensed, tiny):
    photograph = tiny.pixels(1200, 1700)
    assert unlicensed.explain(photograph).overlay().size == (1700, 1200)


def test_targets_and_explainers_are_chosen_by_name(licensed, tiny, picture):
    by_label = licensed.explain(picture, target="south-east", explainer="coarse")
    by_index = licensed.explain(picture, target=3, explainer="coarse")
    np.testing.assert_array_equal(by_label.map, by_index.map)
    assert (by_label.target.label, by_label.explainer.name, by_label.map.shape) == ("south-east", "coarse", (4, 4))
    assert licensed.explain(picture, parameters={"power": 1}).explainer.parameters == {"layer": "stem", "power": 1}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"explainer": "tea_leaves"}, "brightness"),
        ({"target": "centre"}, "north-west"),
        ({"target": 4}, "0 to 3"),
        ({"parameters": {"power": 2}}, "cannot be changed"),
    ],
)
def test_a_choice_that_does_not_exist_is_answered_with_those_that_do(licensed, picture, options, what):
    with pytest.raises(RequestRefusedError, match=what) as caught:
        licensed.explain(picture, **options)
    assert caught.value.violations


def test_an_unknown_model_is_refused(calls, picture):
    with Client(calls.server.target, model="huge") as client, pytest.raises(RequestRefusedError, match="tiny"):
        client.predict(picture)


def test_one_bad_image_among_many_is_named(licensed, picture, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for call in (licensed.explain, licensed.predict):
        with pytest.raises(RequestRefusedError, match=r"^.*bad\.png: the PNG image cannot be decoded"):
            call([picture] * 20 + [bad])
    assert licensed.explain(picture).keyed


def test_a_tensor_of_another_shape_is_refused(unlicensed):
    for call in (unlicensed.explain, unlicensed.predict):
        with pytest.raises(RequestRefusedError, match="shape"):
            call(np.zeros((3, 9, 9), np.float32))


def test_forty_images_come_back_in_order(unlicensed, tiny):
    images = tiny.images(40)
    explanations = unlicensed.explain(images)
    maps = np.stack([explanation.map for explanation in explanations])
    np.testing.assert_allclose(maps, tiny.maps(images, np.full(40, -1)), rtol=1e-4, atol=1e-6)


def test_the_model_is_described(unlicensed, tiny, vendor):
    info = unlicensed.model()
    assert (info.classes, info.preprocessing) == (tiny.classes, tiny.preprocessing)
    assert (info.model.name, info.model.digest) == ("tiny", vendor.manifest.model_digest)
    assert "brightness" in [explainer.name for explainer in info.explainers]
    assert info.key_available


def test_the_license_is_described(calls, vendor):
    granted = vendor.grant(explainers=("coarse",))
    with Client(calls.server.target, license=granted.token) as client:
        told = client.license()
    assert (told.id, told.customer, told.explainers) == (granted.id, "Acme", ("coarse",))
    assert told.expires == granted.license.expires


def test_a_license_that_is_not_good_is_an_error_with_its_reason(calls, vendor, tiny, picture):
    revoked = vendor.grant()
    vendor.store.revoke(revoked.id, at=tiny.now)
    past = tiny.now - timedelta(days=9)
    cases = {
        LicenseReason.REVOKED: revoked.token,
        LicenseReason.EXPIRED: vendor.grant(not_before=past, expires=past + timedelta(days=1)).token,
        LicenseReason.WRONG_MODEL: vendor.grant(models=("other",)).token,
        LicenseReason.WRONG_EXPLAINER: vendor.grant(explainers=("coarse",)).token,
        LicenseReason.UNKNOWN: vendor.grant(record=False).token,
    }
    for reason, token in cases.items():
        with Client(calls.server.target, license=token) as client:
            with pytest.raises(LicenseRefusedError) as caught:
                client.explain(picture, explainer="brightness")
            assert caught.value.reason is reason
            assert caught.value.exit_code == 5
            assert client.predict(picture).label


def test_a_server_that_refuses_the_unlicensed_says_what_is_missing(start_server, picture):
    with Client(start_server(unlicensed_explanations="refuse").server.target) as client:
        with pytest.raises(LicenseRefusedError) as caught:
            client.explain(picture)
        assert caught.value.reason is LicenseReason.MISSING


def test_a_server_without_the_key_does_not_take_a_license(start_server, vendor, picture):
    target = start_server(keyless=True, key_file=None).server.target
    with Client(target, license=vendor.grant().token) as client, pytest.raises(UnsupportedError, match="holds no key"):
        client.explain(picture)


def test_an_image_over_the_limit_of_the_server_is_refused_in_words(start_server, tiny):
    target = start_server(max_message_bytes=64 * 1024).server.target
    with Client(target) as client, pytest.raises(RequestRefusedError, match="send a smaller one"):
        client.explain(tiny.pixels(300, 300))


def test_the_asynchronous_client_gets_the_same(calls, vendor, licensed, loop_thread, picture):
    async def ask():
        async with AsyncClient(calls.server.target, license=vendor.grant().token) as client:
            return await client.explain(picture), await client.predict([picture]), await client.license()

    explanation, [prediction], granted = loop_thread.run(ask())
    np.testing.assert_array_equal(explanation.map, licensed.explain(picture).map)
    assert prediction == licensed.predict(picture)
    assert granted.customer == "Acme"


def test_the_shell_predicts(shell, tiny, picture, image_file):
    label = tiny.classes[tiny.logits(tiny.preprocessing(picture)[None]).argmax()]
    code, out, err = shell("predict", image_file, image_file)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["image", "label", "probability"]
    assert [line.split()[1] for line in lines[1:]] == [label, label]
    code, out, err = shell("predict", image_file, "--json")
    [entry] = json.loads(out)["predictions"]
    assert (entry["image"], entry["label"], len(entry["logits"])) == (str(image_file), label, 4)


def test_the_shell_predicts_what_it_can_of_several_images(shell, image_file, tmp_path):
    (tmp_path / "broken.png").write_bytes(image_file.read_bytes()[:40])
    many = ["broken.png", *[image_file] * 17, "gone.png"]
    code, out, err = shell("predict", *many, "--json")
    assert code == 3, err
    assert [one["image"] for one in json.loads(out)["predictions"]] == [str(image_file)] * 17
    assert re.fullmatch(r"error: .*'?gone\.png'?.*\nerror: .*broken\.png.*\n", err)
    code, out, err = shell("predict", "gone.png", "broken.png")
    assert (code, out) == (3, "")
    assert len(err.splitlines()) == 2


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize(("command", "columns"), [("explain", 60), ("explain", 200), ("predict", 60)])
def test_the_shell_counts_many_images_on_a_terminal(image_file, monkeypatch, command, columns):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = run_in_terminal([command, *[str(image_file)] * 20, "--json"], columns=columns)
    assert shown.code == 0, shown.terminal
    [answers] = json.loads(shown.out).values()
    assert len(answers) == 20
    assert cursor_is_shown(shown.terminal)
    drawn = [line for line in plain(shown.terminal).splitlines() if line.startswith(f"{command}  ")]
    assert " 0/20  0:00:00" in drawn[0]
    assert max(map(len, drawn)) < columns


def test_the_shell_predicts_nothing_where_no_server_is(shell, image_file, monkeypatch):
    monkeypatch.setenv("KEYLOCK_TARGET", "localhost:1")
    code, out, err = shell("predict", image_file, image_file, "--timeout", "5")
    assert (code, out) == (7, "")
    assert len(err.splitlines()) == 1


def test_an_image_has_one_prediction_and_licensed_callers_may_ask_for_the_other(licensed, unlicensed, tiny, picture):
    public = licensed.predict(picture)
    with_license, without = licensed.explain(picture), unlicensed.explain(picture)
    assert with_license.keyed
    for prediction in (with_license.prediction, without.prediction):
        assert not prediction.keyed
        assert prediction.logits == public.logits
        assert prediction.probability == pytest.approx(public.probability, rel=1e-6)
    keyed = licensed.explain(picture, prediction="keyed")
    assert keyed.prediction.keyed
    assert "keyed" in repr(keyed.prediction)
    assert keyed.prediction.logits != public.logits
    # The map is the same, and so is the class that it is about: that of the network behind it.
    np.testing.assert_array_equal(keyed.map, with_license.map)
    assert keyed.target.index == with_license.target.index == keyed.prediction.index
    assert with_license.target.probability == pytest.approx(
        np.exp(public.logits)[keyed.target.index] / np.exp(public.logits).sum(), rel=1e-5
    )
    [streamed] = licensed.explain_many([picture], prediction="keyed")
    assert streamed.explanation.prediction.keyed
    [streamed] = licensed.explain_many([picture])
    assert streamed.explanation.prediction.logits == public.logits


def test_the_prediction_with_the_key_needs_a_license(unlicensed, picture):
    with pytest.raises(LicenseRefusedError, match=r"^predictions with the key need a license: give one with") as caught:
        unlicensed.explain(picture, prediction="keyed")
    assert caught.value.reason is LicenseReason.MISSING
    with pytest.raises(InputError, match="give public or keyed"):
        unlicensed.explain(picture, prediction="secret")


def test_the_shell_shows_either_prediction(shell, image_file):
    public = json.loads(shell("predict", image_file, "--json")[1])["predictions"][0]
    asked = ("explain", image_file, "--license-file", "acme.license")
    plain = json.loads(shell(*asked, "--json")[1])["explanations"][0]["prediction"]
    assert plain == {key: value for key, value in public.items() if key != "image"} | {
        "probability": pytest.approx(public["probability"], rel=1e-6),
        "top": plain["top"],
    }
    keyed = json.loads(shell(*asked, "--prediction", "keyed", "--json")[1])["explanations"][0]["prediction"]
    assert keyed["keyed"]
    assert keyed["logits"] != public["logits"]
    assert "keyed probability" in shell(*asked, "--prediction", "keyed")[1]
    assert "keyed probability" not in shell(*asked)[1]


def test_the_shell_reads_an_image_from_standard_input(shell, image_file, monkeypatch):
    with image_file.open("rb") as file:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": file, "isatty": lambda self: False})())
        code, out, err = shell("predict", "-", "--json")
    assert code == 0, err
    assert json.loads(out)["predictions"][0]["image"] == "-"


def test_the_shell_explains_and_writes_what_the_suffix_says(shell, image_file, tmp_path, licensed, picture):
    for name in ("overlay.png", "map.npy", "all.json"):
        code, out, err = shell("explain", image_file, "--license-file", "acme.license", "--out", name)
        assert (code, err) == (0, "")
        assert "keyed" in out
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.size == (256, 256)
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), licensed.explain(picture).map)
    assert json.loads((tmp_path / "all.json").read_text())["keyed"] is True


def test_the_shell_tells_that_a_map_is_a_decoy(shell, image_file):
    code, out, err = shell("explain", image_file, "--json", "--explainer", "coarse")
    [entry] = json.loads(out)["explanations"]
    assert code == 0, err
    assert (entry["keyed"], entry["explainer"]["name"]) == (False, "coarse")
    assert entry["file"] is None
    assert err == "note: no license was presented, so the maps are decoys; give one with --license-file\n"


@pytest.mark.parametrize("images", [1, 2])
def test_the_shell_says_that_a_target_needs_a_license(shell, image_file, images, open_targets):
    asked = ("explain", *[image_file] * images, "--json", "--target", "2")
    code, out, err = shell(*asked)
    assert (code, out) == (5, "")
    assert "needs a license: give one with --license-file, or leave out --target" in err
    for told in (("--license-file", "acme.license"), ("--server", open_targets.server.target)):
        code, out, err = shell(*asked, *told)
        assert code == 0, err
        assert {entry["target"]["label"] for entry in json.loads(out)["explanations"]} == {"south-west"}


def test_a_target_without_a_license_is_an_error_that_names_the_argument(unlicensed, picture):
    for ask in (unlicensed.explain, lambda image, **asked: list(unlicensed.explain_many([image], **asked))):
        with pytest.raises(LicenseRefusedError, match=r"give one with license=, or leave out target=") as caught:
            ask(picture, target="south-east")
        assert caught.value.reason is LicenseReason.NEEDED_FOR_TARGET
        assert caught.value.field.endswith("target_label")


def test_the_shell_writes_several_overlays_to_a_directory(shell, image_file, tmp_path):
    other = tmp_path / "sub" / "picture.png"
    other.parent.mkdir()
    other.write_bytes(image_file.read_bytes())
    code, out, err = shell("explain", image_file, other, "--out", "overlays", "--json")
    assert code == 0, err
    files = [entry["file"] for entry in json.loads(out)["explanations"]]
    assert files == ["overlays/picture-1.png", "overlays/picture-2.png"]
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == ["picture-1.png", "picture-2.png"]


def test_the_shell_explains_what_it_can_of_several_images(shell, image_file, tmp_path):
    given = (image_file, tmp_path / "gone.png", tmp_path / "acme.license", image_file)
    code, out, err = shell("explain", *given, "--license-file", "acme.license", "--out", "overlays")
    assert code == 3, err
    assert [line.split()[0] for line in out.splitlines()[1:]] == [str(image_file)] * 2
    assert len(list((tmp_path / "overlays").iterdir())) == 2
    errors = err.splitlines()
    assert len(errors) == 2
    assert all(line.startswith("error: ") for line in errors)
    for name in ("gone.png", "acme.license"):
        assert sum(name in line for line in errors) == 1
    code, out, err = shell("explain", *given, "--json")
    assert code == 3, err
    assert [entry["image"] for entry in json.loads(out)["explanations"]] == [str(image_file)] * 2


@pytest.mark.parametrize(
    ("arguments", "expected", "what"),
    [
        (["predict", "gone.png"], 3, "cannot read the image 'gone.png'"),
        (["predict", "acme.license"], 3, "not an image file"),
        (["explain", "picture.png", "--explainer", "tea"], 3, "unknown explainer 'tea'"),
        (["explain", "picture.png", "--target", "centre"], 3, "unknown class 'centre'"),
        (["explain", "picture.png", "--out", "a.txt"], 3, "end the name with one of"),
        (["explain", "picture.png", "--out", "gone/a.png"], 3, "there is no directory 'gone'"),
        (["explain", "picture.png", "picture.png", "--out", "a.png"], 3, "give a directory"),
        (["explain", "picture.png", "--license-file", "gone"], 5, "cannot read|cannot be read"),
        (["explain", "picture.png", "--license-file", "picture.png"], 5, "holds no license"),
        (["explain", "picture.png", "--server", "localhost:1"], 7, "no server listens at localhost:1"),
        (["explain", "picture.png", "--no-tls", "--tls-ca", "x"], 3, "exclude each other"),
        (["explain", "picture.png", "--tls-ca", "gone.pem"], 3, "for TLS"),
    ],
)
def test_the_shell_answers_mistakes_with_one_line(shell, image_file, arguments, expected, what):
    code, out, err = shell(*arguments)
    assert (code, out) == (expected, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(what, err)


def test_the_shell_says_why_a_license_is_refused(shell, vendor, image_file, tmp_path):
    (tmp_path / "narrow.license").write_text(vendor.grant(explainers=("coarse",)).token)
    code, out, err = shell("explain", image_file, "--license-file", "narrow.license", "-e", "brightness")
    assert (code, out) == (5, "")
    assert "coarse" in err or "brightness" in err
