"""The paths of keylock itself answer what the RPCs answer, in JSON."""

import base64
import io

import numpy as np
import pytest
from PIL import Image


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture(tiny):
    return png(tiny.pixels(8, 8))


@pytest.fixture(scope="module")
def expected(tiny):
    """The map of that picture by the second implementation, with the key and without."""
    return tiny.preprocessing(tiny.pixels(8, 8))[None]


def encoded(file):
    return base64.b64encode(file).decode()


def map_of(result):
    assert result["map"]["dtype"] == "DATA_TYPE_FLOAT32"
    return np.frombuffer(base64.b64decode(result["map"]["data"]), "<f4").reshape(result["map"]["shape"])


def test_a_licensed_caller_gets_what_grpc_answers(web, vendor, tiny, picture):
    granted = vendor.grant()
    from keylock.v1 import explanation_pb2 as pb

    asked = {"images": [{"encoded": encoded(picture)}], "request_id": "over-http"}
    reply = web.post("/v1/explain", asked, token=granted.token)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    answer = reply.plain
    (result,) = answer["results"]
    (known,) = web.calls.explain(pb.Image(encoded=picture), token=granted.token).results
    assert result["keyed"] is True
    np.testing.assert_array_equal(map_of(result), tiny.to_array(known.map))
    assert result["prediction"]["label"] == known.prediction.label
    assert answer["request_id"] == reply.headers["x-request-id"] == "over-http"
    assert answer["usage"]["units"] == 1
    assert answer["usage"]["license_id"] == granted.id
    assert answer["usage"]["replayed"] is False
    # Asked again by the other protocol, it is the same request and costs nothing.
    again = web.calls.explain(pb.Image(encoded=picture), token=granted.token, request_id="over-http")
    assert again.usage.replayed


def test_without_a_license_the_map_is_a_decoy(web, tiny, picture, vendor):
    plain = web.post("/v1/explain", {"images": [encoded(picture)]}).plain
    keyed = web.post("/v1/explain", {"images": [encoded(picture)]}, token=vendor.grant().token).plain
    assert plain["results"][0]["keyed"] is False
    assert "usage" not in plain
    assert not np.array_equal(map_of(plain["results"][0]), map_of(keyed["results"][0]))


def test_an_image_file_is_a_body_of_its_own(web, vendor, picture):
    token = vendor.grant().token
    query = "?explainer=coarse&maps=lists&request_id=raw-body"
    answer = web.post(f"/v1/explain{query}", picture, token=token, headers={"Content-Type": "image/png"}).plain
    (result,) = answer["results"]
    values = np.array(result["map"]["values"])
    in_json = web.post("/v1/explain", {"images": [encoded(picture)], "explainer": "coarse"}, token=token).plain
    np.testing.assert_array_equal(values.astype("f4"), map_of(in_json["results"][0]))
    assert answer["request_id"] == "raw-body"


@pytest.mark.parametrize("dtype", ["DATA_TYPE_FLOAT16", "DATA_TYPE_UINT8"])
def test_lists_have_the_values_of_scaled_maps(web, vendor, picture, dtype):
    token = vendor.grant().token
    asked = {"images": [encoded(picture)]}
    exact = np.array(web.post("/v1/explain?maps=lists", asked, token=token).plain["results"][0]["map"]["values"])
    asked["answer"] = {"map_dtype": dtype}
    about = np.array(web.post("/v1/explain?maps=lists", asked, token=token).plain["results"][0]["map"]["values"])
    assert np.abs(about - exact).max() <= np.ptp(exact) / 255


def test_tensors_travel_in_json(web, tiny):
    images = tiny.images(2)
    sent = [
        {"tensor": {"dtype": "DATA_TYPE_FLOAT32", "shape": [3, 8, 8], "data": encoded(image.tobytes())}}
        for image in images
    ]
    answer = web.post("/v1/explain", {"images": sent}).plain
    logits = [result["prediction"]["logits"] for result in answer["results"]]
    np.testing.assert_allclose(logits, tiny.logits(images), rtol=1e-4, atol=1e-6)


def test_what_a_license_grants_and_has_left(web, vendor, picture):
    from keylock.licensing import Quota

    granted = vendor.grant(quota=Quota(total=5))
    web.post("/v1/explain", {"images": [encoded(picture)]}, token=granted.token)
    assert web.get("/v1/license", token=granted.token).plain["license"]["id"] == granted.id
    (quota,) = [one for one in web.get("/v1/usage", token=granted.token).plain["quotas"] if one["period"] == "total"]
    assert (quota["limit"], quota["used"]) == (5, 1)
    estimate = web.post("/v1/estimate", {"images": 5}, token=granted.token).plain
    assert (estimate["units"], estimate["fits"]) == (5, False)
    token = web.post("/v1/token", {}, token=granted.token).plain["access_token"]
    assert web.get("/v1/license", token=token).plain["license"]["id"] == granted.id


def test_models_are_listed_and_described(web):
    (listed,) = web.get("/v1/models").plain["models"]
    assert (listed["name"], listed["state"]) == ("tiny", "READY")
    described = web.get("/v1/models/tiny").plain
    assert described["model"]["version"] == listed["version"]
    assert [explainer["name"] for explainer in described["explainers"]] == ["brightness", "coarse"]
    assert described["limits"]["max_images"] == 32
    assert web.get(f"/v1/models/tiny?version={listed['version']}").plain == described
