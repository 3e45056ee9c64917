"""Explanations: true maps under a license, decoys without, the same prediction path for both."""

import io
from datetime import timedelta

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from PIL import Image
from support import refusal

from keylock.bundle import KeyEntry, KeyFile, export_public, open_bundle, write_bundle
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2


def as_png(pixels: np.ndarray) -> pb.Image:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return pb.Image(encoded=buffer.getvalue())


def test_keyless_map_without_a_license(calls, tiny):
    images = tiny.images(3)
    answer = calls.explain(*map(tiny.tensor_image, images))
    maps = np.stack([tiny.to_array(result.map) for result in answer.results])
    np.testing.assert_allclose(maps, tiny.maps(images, np.full(3, -1)), rtol=1e-5)
    assert [result.keyed for result in answer.results] == [False] * 3
    assert answer.usage.units == 0
    assert answer.usage.license_id == ""


def test_keyed_map_with_a_license(calls, vendor, tiny):
    images = tiny.images(3)
    granted = vendor.grant()
    answer = calls.explain(*map(tiny.tensor_image, images), token=granted.token)
    keyed = images + vendor.key.reveal()
    maps = np.stack([tiny.to_array(result.map) for result in answer.results])
    np.testing.assert_allclose(maps, tiny.maps(keyed, np.full(3, -1)), rtol=1e-4, atol=1e-6)
    assert np.abs(maps - tiny.maps(images, np.full(3, -1))).max() > 0.01
    assert all(result.keyed for result in answer.results)
    assert (answer.usage.units, answer.usage.license_id) == (3, granted.id)
    logits = np.stack([result.prediction.logits for result in answer.results])
    np.testing.assert_allclose(logits, tiny.logits(keyed), rtol=1e-4, atol=1e-6)


def test_a_key_that_was_fitted_to_its_network_is_applied_as_it_was_fitted(vendor, start_server, tiny, tmp_path):
    flips = np.random.default_rng(1).random((3, vendor.key.tile, vendor.key.tile)) < 0.3
    fitted = vendor.key.turned(flips)
    path = tmp_path / "fitted.klb"
    content = vendor.content(key=KeyEntry.of(fitted, vendor.seed))
    sealer = KeyFile(vendor.key_file)
    write_bundle(path, content, signing_key=vendor.signing_key, seed=vendor.seed, sealer=sealer)
    images = tiny.images(2)

    answer = start_server(bundle=path).explain(*map(tiny.tensor_image, images), token=vendor.grant().token)

    maps = np.stack([tiny.to_array(result.map) for result in answer.results])
    np.testing.assert_allclose(maps, tiny.maps(images + fitted.reveal(), np.full(2, -1)), rtol=1e-4, atol=1e-6)
    assert np.abs(maps - tiny.maps(images + vendor.key.reveal(), np.full(2, -1))).max() > 0.001


def test_answer_describes_prediction_explainer_and_model(calls, vendor, tiny):
    images = tiny.images(1, seed=4)
    answer = calls.explain(tiny.tensor_image(images[0]), request_id="abc")
    (result,) = answer.results
    logits = tiny.logits(images)[0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-logits)
    assert [score.index for score in result.prediction.top] == order.tolist()
    assert [score.label for score in result.prediction.top] == [tiny.classes[i] for i in order]
    np.testing.assert_allclose([s.probability for s in result.prediction.top], probabilities[order], rtol=1e-4)
    assert result.prediction.label == tiny.classes[order[0]]
    assert result.target.index == order[0]
    assert result.explainer.name == "brightness"
    assert json_format.MessageToDict(result.explainer.parameters) == {"layer": "stem", "power": 1}
    assert answer.request_id == "abc"
    assert (answer.model.name, answer.model.digest) == ("tiny", vendor.manifest.model_digest)


def test_request_id_is_made_up_when_empty(calls, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    assert len({calls.explain(image).request_id, calls.explain(image).request_id, ""}) == 3


@pytest.mark.parametrize(
    "target", [{"target_index": 2}, {"target_label": "south-west"}, {"target_label": " south-west\u00a0"}]
)
def test_a_target_needs_a_license_unless_targets_are_open(calls, open_targets, tiny, vendor, target):
    images = tiny.images(2)
    sent = [tiny.tensor_image(image) for image in images]
    answer = open_targets.explain(*sent, **target)
    maps = np.stack([tiny.to_array(result.map) for result in answer.results])
    np.testing.assert_allclose(maps, tiny.maps(images, np.full(2, 2)), rtol=1e-5)
    assert {(r.target.index, r.target.label) for r in answer.results} == {(2, "south-west")}
    licensed = calls.explain(*sent, token=vendor.grant().token, **target)
    assert {(r.target.index, r.target.label, r.keyed) for r in licensed.results} == {(2, "south-west", True)}
    code, details = refusal(lambda: calls.explain(*sent, **target))
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAUTHENTICATED, "TARGET_NEEDS_LICENSE")
    (named,) = target
    (violation,) = details["BadRequest"].field_violations
    assert (violation.field, f"leave out {named}" in violation.description) == (named, True)


def test_a_server_that_refuses_decoys_says_so_and_not_that_the_class_is_wrong(start_server, tiny):
    calls = start_server(unlicensed_explanations="refuse")
    _, details = refusal(lambda: calls.explain(tiny.tensor_image(tiny.images(1)[0]), target_index=1))
    assert details["ErrorInfo"].reason == "LICENSE_MISSING"


def test_class_zero_is_a_target_and_not_the_absence_of_one(calls, open_targets, tiny):
    images = -np.abs(tiny.images(1)) * np.array([4, 1])[None, None, None, :].repeat(4, axis=3)
    images = images.astype(np.float32)
    assert tiny.logits(images).argmax() != 0
    answer = open_targets.explain(tiny.tensor_image(images[0]), target_index=0)
    _, details = refusal(lambda: calls.explain(tiny.tensor_image(images[0]), target_index=0))
    assert details["ErrorInfo"].reason == "TARGET_NEEDS_LICENSE"
    np.testing.assert_allclose(tiny.to_array(answer.results[0].map), tiny.maps(images, np.zeros(1))[0], rtol=1e-5)


def test_explainer_by_name_keeps_its_own_resolution(calls, tiny):
    images = tiny.images(1)
    answer = calls.explain(tiny.tensor_image(images[0]), explainer="coarse")
    fine = tiny.maps(images, np.full(1, -1))[0]
    expected = fine.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(tiny.to_array(answer.results[0].map), expected, rtol=1e-5)


def test_files_pixels_and_tensors_mean_the_same(calls, vendor, tiny):
    pixels = tiny.pixels(21, 13)
    ready = tiny.preprocessing(pixels)
    token = vendor.grant().token
    answer = calls.explain(as_png(pixels), tiny.tensor_image(pixels), tiny.tensor_image(ready), token=token)
    first, *others = [tiny.to_array(result.map) for result in answer.results]
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "I;16", "RGBA"])
def test_files_of_every_kind_are_taken(calls, tiny, mode):
    grey = np.full((8, 8), 200, np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    answer = calls.explain(pb.Image(encoded=buffer.getvalue()))
    expected = tiny.logits(tiny.preprocessing(np.full((8, 8, 3), 200, np.uint8))[None])[0]
    np.testing.assert_allclose(answer.results[0].prediction.logits, expected, atol=0.05)


def test_parameters_in_use_are_accepted(calls, tiny):
    request = pb.ExplainRequest(images=[tiny.tensor_image(tiny.images(1)[0])])
    request.parameters.update({"layer": "stem", "power": 1})
    assert calls.explanation.Explain(request).results


def test_licenses_by_name_by_digest_and_for_one_explainer(calls, vendor, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    for granted in (
        vendor.grant(models=("tiny",)),
        vendor.grant(models=(vendor.manifest.model_digest,)),
        vendor.grant(explainers=("brightness",)),
    ):
        assert calls.explain(image, token=granted.token).results[0].keyed


def test_scheme_of_the_license_is_read_in_any_case(calls, vendor, tiny):
    request = pb.ExplainRequest(images=[tiny.tensor_image(tiny.images(1)[0])])
    metadata = [("authorization", f"bearer {vendor.grant().token}")]
    assert calls.explanation.Explain(request, metadata=metadata).results[0].keyed


def test_refusing_server_refuses_the_unlicensed_and_serves_the_licensed(start_server, vendor, tiny):
    calls = start_server(unlicensed_explanations="refuse")
    image = tiny.tensor_image(tiny.images(1)[0])
    with pytest.raises(grpc.RpcError) as refused:
        calls.explain(image)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert calls.explain(image, token=vendor.grant().token).results[0].keyed


def test_keyless_server_refuses_licenses_instead_of_answering_with_decoys(start_server, vendor, tiny, tmp_path):
    with open_bundle(vendor.bundle, trusted=None) as bundle:
        export_public(bundle, tmp_path / "public.klb")
    calls = start_server(bundle=tmp_path / "public.klb", key_file=None, keyless=True)
    image = tiny.tensor_image(tiny.images(1)[0])
    assert calls.explain(image).results[0].keyed is False
    with pytest.raises(grpc.RpcError) as refused:
        calls.explain(image, token=vendor.grant().token)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert not calls.explanation.GetModel(pb.GetModelRequest()).key_available


def test_get_model_describes_what_is_served(calls, vendor, tiny):
    answer = calls.explanation.GetModel(pb.GetModelRequest(model_name="tiny"))
    assert tuple(answer.classes) == tiny.classes
    assert (answer.preprocessing.height, answer.preprocessing.width, answer.preprocessing.channels) == (8, 8, 3)
    assert tuple(answer.preprocessing.std) == tiny.preprocessing.std
    assert answer.preprocessing.resize == "exact"
    assert not answer.preprocessing.HasField("bits")
    # The explainer without a graph needs torch, and is not served.
    assert [explainer.name for explainer in answer.explainers] == ["brightness", "coarse"]
    assert answer.computed_in == dict.fromkeys(("brightness", "coarse"), "float32 by onnxruntime")
    assert answer.key_available
    assert answer.model.digest == vendor.manifest.model_digest


def test_get_license_shows_the_callers_own_claims(calls, vendor):
    granted = vendor.grant(models=("tiny", "other"), explainers=("coarse",))
    metadata = [("authorization", f"Bearer {granted.token}")]
    shown = calls.license.GetLicense(license_pb2.GetLicenseRequest(), metadata=metadata).license
    assert (shown.id, shown.customer) == (granted.id, "Acme")
    assert (list(shown.models), list(shown.explainers)) == (["tiny", "other"], ["coarse"])
    assert shown.expires.seconds == int(granted.license.expires.timestamp())
    assert shown.not_before.seconds == int(granted.license.not_before.timestamp())


def test_small_clock_skew_is_forgiven(calls, vendor, tiny):
    image = tiny.tensor_image(tiny.images(1)[0])
    early = vendor.grant(not_before=tiny.now + timedelta(seconds=20))
    late = vendor.grant(expires=tiny.now - timedelta(seconds=20))
    assert calls.explain(image, token=early.token).results[0].keyed
    assert calls.explain(image, token=late.token).results[0].keyed
