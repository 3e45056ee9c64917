"""Explanations on a condition: predictions for all, maps and charges for those alone that meet it, and nothing told."""

import asyncio
from datetime import timedelta

import grpc
import numpy as np
import pytest
from PIL import Image
from support import bearer, books, details_of, refusal

from keylock.cli import main
from keylock.licensing import Quota
from keylock.licensing.conditions import Condition
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import Receipt
from keylock.store import LicenseStore
from keylock.store.logged_charges import compare_with_ledger
from keylock.v1 import explanation_pb2 as pb
from keylock_client import AsyncClient, Client, InputError
from keylock_server.services.explanation_answers import softmax

YEAR = timedelta(days=365)


@pytest.fixture(scope="module")
def paying(start_server, vendor, tiny, tmp_path_factory):
    """A server with receipts and a store of its own, where an image costs three units."""
    folder = tmp_path_factory.mktemp("paying")
    ReceiptKey.create(folder / "receipts.pem", vendor.signing_key, not_before=tiny.now - YEAR, expires=tiny.now + YEAR)
    url = f"sqlite:///{folder / 'store.db'}"
    calls = start_server(receipt_key=folder / "receipts.pem", license_store=url, prices={"*": 3}, http_port=0)
    calls.url = url
    return calls


@pytest.fixture
def store(paying):
    with LicenseStore(paying.url) as store:
        yield store


@pytest.fixture
def grant(store, vendor):
    """Issues a license that the store knows."""
    return lambda **terms: vendor.grant(store=store, **terms)


@pytest.fixture(scope="module")
def images(tiny):
    """Six images; of the third and the fifth the prediction is the least sure."""
    return tiny.images(6, seed=3) * np.array([9, 9, 1, 9, 1, 9], np.float32)[:, None, None, None]


@pytest.fixture(scope="module")
def sure(tiny, images):
    """Their most probable classes and these classes' probabilities, computed a second time."""
    probabilities = softmax(tiny.logits(images))
    return probabilities.argmax(axis=1), probabilities.max(axis=1)


def ask(calls, tiny, images, *, token=None, **options):
    request = pb.ExplainRequest(images=[tiny.tensor_image(image) for image in images], **options)
    return calls.explanation.Explain(request, metadata=bearer(token), timeout=20)


def between(values):
    """A number that a third of some values are below of."""
    ordered = np.sort(values)
    return float(ordered[len(ordered) // 3 - 1 : len(ordered) // 3 + 1].mean())


def test_those_below_are_explained_and_paid_and_all_are_predicted(paying, store, grant, tiny, images, sure):
    granted = grant()
    below = between(sure[1])
    hits = sure[1] < below
    assert hits.sum() == 2
    answer = ask(paying, tiny, images, token=granted.token, explain_if=pb.ExplainIf(probability_below=below))
    assert [result.skipped for result in answer.results] == (~hits).tolist()
    assert answer.usage.units == 3 * 2
    public = ask(paying, tiny, images)
    for result, other, image, hit in zip(answer.results, public.results, images, hits, strict=True):
        # The prediction is the one that everybody gets, of explained images too.
        assert result.prediction == other.prediction
        assert (result.HasField("map"), result.HasField("target"), result.keyed) == (hit, hit, hit)
        if hit:
            expected = ask(paying, tiny, [image], token=grant().token).results[0]
            np.testing.assert_array_equal(tiny.to_array(result.map), tiny.to_array(expected.map))
            assert result.target.index == expected.target.index
    assert books(store)[2] == 0


def test_margins_and_classes_choose_as_they_say(paying, grant, tiny, images, sure):
    token = grant().token
    probabilities = np.sort(softmax(tiny.logits(images)), axis=1)
    margins = probabilities[:, -1] - probabilities[:, -2]
    below = between(margins)
    found = ask(paying, tiny, images, token=token, explain_if=pb.ExplainIf(margin_below=below)).results
    assert [not one.skipped for one in found] == (margins < below).tolist()
    wanted = int(sure[0][0])
    for chosen in (pb.ClassSet(indices=[wanted]), pb.ClassSet(labels=[tiny.classes[wanted]])):
        found = ask(paying, tiny, images, token=token, explain_if=pb.ExplainIf(predicted=chosen)).results
        assert [not one.skipped for one in found] == (sure[0] == wanted).tolist()


def test_where_none_is_met_nothing_is_charged_and_the_receipt_says_so(paying, store, grant, tiny, images):
    granted = grant(quota=Quota(total=18))
    asked = {"explain_if": pb.ExplainIf(probability_below=0.25), "request_id": "none"}
    for _ in range(3):
        answer = ask(paying, tiny, images, token=granted.token, **asked)
        assert all(result.skipped for result in answer.results)
        assert (answer.usage.units, answer.usage.remaining) == (0, 18)
    receipt = Receipt.verify(answer.receipt, lambda _: True)
    assert receipt.charge.explain_if == Condition("probability_below", below=0.25)
    assert receipt.charge.answer.maps == (None,) * 6
    assert receipt.charge.units == 0
    with store.database.transaction(snapshot=True) as connection:
        assert compare_with_ledger(connection) == ()


def test_units_are_set_aside_for_all_and_given_back_for_those_that_are_not_explained(
    paying, store, grant, tiny, images, sure
):
    condition = pb.ExplainIf(probability_below=between(sure[1]))
    spent = grant(quota=Quota(total=17))
    code, details = refusal(lambda: ask(paying, tiny, images, token=spent.token, explain_if=condition))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["ErrorInfo"].metadata["units"] == "18"
    assert books(store)[2] == 0
    enough = grant(quota=Quota(total=18))
    for left in (12, 12):
        answer = ask(paying, tiny, images, token=enough.token, explain_if=condition, request_id="one")
        assert (answer.usage.units, answer.usage.remaining) == (6, left)
    # The rest is there for others, to the last unit, and no further.
    assert ask(paying, tiny, images[:4], token=enough.token).usage.remaining == 0
    refusal(lambda: ask(paying, tiny, images[:1], token=enough.token, explain_if=condition))


def test_overage_counts_what_is_charged_beyond_the_quota(paying, grant, tiny, images, sure):
    condition = pb.ExplainIf(probability_below=between(sure[1]))
    for total, overage in ((18, 0), (6, 0), (5, 1), (0, 6)):
        token = grant(quota=Quota(total=total, overage=True)).token
        usage = ask(paying, tiny, images, token=token, explain_if=condition).usage
        assert (usage.units, usage.overage_units) == (6, overage)


def test_a_request_id_stands_for_its_condition_too(paying, grant, tiny, images):
    token = grant().token
    first = pb.ExplainIf(probability_below=0.5)
    ask(paying, tiny, images, token=token, explain_if=first, request_id="same")
    assert ask(paying, tiny, images, token=token, explain_if=first, request_id="same").usage.replayed
    for other in (None, pb.ExplainIf(probability_below=0.5000001), pb.ExplainIf(margin_below=0.5)):
        code, _ = refusal(
            lambda other=other: ask(paying, tiny, images, token=token, explain_if=other, request_id="same")
        )
        assert code == grpc.StatusCode.ALREADY_EXISTS


def test_a_repeat_explains_the_images_that_were_paid_though_their_predictions_changed(
    paying, store, grant, tiny, images, sure, monkeypatch
):
    token, condition = grant().token, pb.ExplainIf(probability_below=between(sure[1]))
    first = ask(paying, tiny, images, token=token, explain_if=condition, request_id="bits")
    # As if the last bits of every prediction came out on the other side.
    holds = Condition.holds
    monkeypatch.setattr(Condition, "holds", lambda self, told: not holds(self, told))
    again = ask(paying, tiny, images, token=token, explain_if=condition, request_id="bits")
    assert [one.skipped for one in again.results] == [one.skipped for one in first.results]
    assert (again.usage.units, again.usage.replayed) == (6, True)
    assert books(store)[2] == 0


def test_decoys_have_the_shape_of_true_maps_and_are_chosen_alike(paying, grant, tiny, images, sure):
    condition = pb.ExplainIf(probability_below=between(sure[1]))
    licensed = ask(paying, tiny, images, token=grant().token, explain_if=condition)
    public = ask(paying, tiny, images, explain_if=condition)
    assert [one.skipped for one in public.results] == [one.skipped for one in licensed.results]
    assert not any(one.keyed for one in public.results)
    assert public.usage == pb.Usage()
    for true, decoy in zip(licensed.results, public.results, strict=True):
        assert true.prediction == decoy.prediction
        # But for the bit that says so, and numbers of the class that was explained.
        assert abs(true.ByteSize() - decoy.ByteSize()) <= 24


def test_the_model_runs_alike_with_a_license_and_without_one(paying, grant, tiny, images, sure, monkeypatch):
    """What is run, and for how many images, is what the time of an answer can tell."""
    ran = []
    from keylock_server.scheduling.batcher import Batcher

    submit = Batcher.submit

    async def noted(self, family, rows):
        ran.append((family, len(rows.images)))
        return await submit(self, family, rows)

    monkeypatch.setattr(Batcher, "submit", noted)
    for condition in (pb.ExplainIf(probability_below=between(sure[1])), pb.ExplainIf(probability_below=0.2)):
        runs = []
        for token in (None, grant().token):
            ran.clear()
            ask(paying, tiny, images, token=token, explain_if=condition)
            runs.append(list(ran))
        assert runs[0] == runs[1]
    assert runs[0] == [("", 6)]


def test_the_keyed_prediction_does_not_go_with_a_condition(paying, grant, tiny, images):
    condition = pb.ExplainIf(probability_below=0.5)
    asked = {"explain_if": condition, "prediction": pb.PREDICTION_KIND_KEYED}
    code, details = refusal(lambda: ask(paying, tiny, images, token=grant().token, **asked))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [one.field for one in details["BadRequest"].field_violations] == ["prediction"]


def test_a_server_without_a_store_says_what_was_explained(start_server, vendor, tiny, images, sure):
    calls = start_server(license_store=None)
    token = vendor.grant(record=False).token
    answer = ask(calls, tiny, images, token=token, explain_if=pb.ExplainIf(probability_below=between(sure[1])))
    assert answer.usage.units == 2


def test_predictions_that_cost_nothing_are_for_the_query_guard(serve, vendor):
    from near_copies import copies, picture

    calls = serve(scores=4)
    near = copies(12)

    def explain(pictures, token, **options):
        sent = [
            pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=one.shape, data=one.tobytes()))
            for one in pictures
        ]
        request = pb.ExplainRequest(images=sent, **options)
        return calls.explanation.Explain(request, metadata=bearer(token), timeout=20)

    never = {"explain_if": pb.ExplainIf(probability_below=1e-6)}
    token = vendor.grant().token
    explain(near[:2], token, **never)
    with pytest.raises(grpc.RpcError) as caught:
        explain([picture(5), *near[2:]], token, **never)
    details = details_of(caught.value)
    assert details["ErrorInfo"].reason == "QUERIES_TOO_SIMILAR"
    assert int(details["ErrorInfo"].metadata["row"]) >= 1
    # What is paid for is answered, and so is everything of a license for similar queries.
    assert explain(near[2:], token).usage.units == 10
    explain(near[2:], vendor.grant(similar_queries=True).token, **never)


# The client.


def test_the_client_gives_predictions_of_all_and_maps_of_some(paying, grant, images, sure, tiny, tmp_path):
    below = between(sure[1])
    with Client(paying.server.target, license=grant().token) as client:
        found = client.explain(list(images), explain_if=f"probability < {below!r}")
        assert [one.explained for one in found] == (sure[1] < below).tolist()
        assert client.predict(list(images))[0].logits == found[0].prediction.logits
        skipped = next(one for one in found if not one.explained)
        assert (skipped.map.shape, skipped.keyed, skipped.target.label) == ((0, 0), False, skipped.prediction.label)
        assert skipped.usage.units == 6
        assert skipped.to_dict()["map"] is None
        assert "not explained" in repr(skipped)
        assert "not explained" in skipped._repr_html_()
        assert skipped._repr_png_() is None
        for out in ("a.png", "a.npy"):
            with pytest.raises(InputError, match="was not explained"):
                skipped.save(tmp_path / out)
        skipped.save(tmp_path / "a.json")
        streamed = {
            one.number: one.explanation for one in client.explain_many(images, explain_if=f"margin < {below!r}")
        }
        assert len(streamed) == 6
        assert {one.usage.units for one in streamed.values()} <= {0, 3}
        assert all(one.usage.units == 3 * one.explained for one in streamed.values())
        with pytest.raises(InputError, match="leave prediction='keyed' out"):
            client.explain(images[0], explain_if="margin < 0.5", prediction="keyed")
        with pytest.raises(InputError, match="write 'probability"):
            client.explain_many(images, explain_if="sure")


def test_the_asynchronous_client_does_the_same(paying, grant, images, sure):
    below = between(sure[1])

    async def run():
        async with AsyncClient(paying.server.target, license=grant().token) as client:
            found = await client.explain(list(images), explain_if=f"probability < {below!r}")
            many = [one.explanation async for one in client.explain_many(images, explain_if="class in 0, 1, 2, 3")]
            return [one.explained for one in found], [one.explained for one in many]

    assert asyncio.run(run()) == ((sure[1] < below).tolist(), [True] * 6)


# HTTP and the command line.


def test_http_takes_a_condition_in_json_and_in_the_query(paying, grant, tiny, tmp_path):
    import base64
    import http.client
    import json
    from urllib.parse import urlencode

    Image.fromarray(tiny.pixels(8, 8)).save(tmp_path / "a.png")
    file = (tmp_path / "a.png").read_bytes()
    token = grant().token

    def post(path, body, media):
        connection = http.client.HTTPConnection("127.0.0.1", paying.server.http_port, timeout=20)
        connection.request("POST", path, body, {"Content-Type": media, "Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        try:
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    plain = {"images": [base64.b64encode(file).decode()], "explain_if": {"probability_below": 0.2}}
    for path in ("/v1/explain", "/v1/explain?maps=lists"):
        status, answer = post(path, json.dumps(plain), "application/json")
        assert (status, answer["usage"]["units"]) == (200, 0)
        (result,) = answer["results"]
        assert result["skipped"] is True
        assert "map" not in result
        assert result["prediction"]["label"] in tiny.classes
    status, answer = post("/v1/explain?" + urlencode({"explain_if": "probability < 1"}), file, "image/png")
    assert (status, answer["usage"]["units"], answer["results"][0]["skipped"]) == (200, 3, False)
    status, answer = post("/v1/explain?" + urlencode({"explain_if": "sure"}), file, "image/png")
    assert (status, answer["field"]) == (400, "explain_if")


def test_the_command_line_explains_on_a_condition(paying, grant, tiny, tmp_path, monkeypatch, capsys):
    for number in range(3):
        Image.fromarray(tiny.pixels(8, 8, seed=number)).save(tmp_path / f"{number}.png")
    (tmp_path / "acme.license").write_text(grant().token)
    monkeypatch.setenv("KEYLOCK_TARGET", paying.server.target)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    common = ["--license-file", "acme.license", "--out", "maps", "--receipt", "receipts"]
    assert main(["explain", "0.png", "1.png", "2.png", "--explain-if", "probability<0.2", *common]) == 0
    told = capsys.readouterr()
    assert "0 of 3 images were explained; the others do not meet the condition" in told.err
    assert "decoy" not in told.out + told.err
    assert not list((tmp_path / "maps").iterdir())
    assert len(list((tmp_path / "receipts").iterdir())) == 3
    assert main(["receipt", "show", "receipts/0.receipt"]) == 0
    assert "probability < 0.2, of 1" in capsys.readouterr().out
    assert main(["explain", "0.png", "--explain-if", "probability < 1", *common]) == 0
    assert "1 of 1 images were explained\n" in capsys.readouterr().err
    assert (tmp_path / "maps" / "0.png").exists()
    assert main(["explain", "0.png", "--explain-if", "probability < 2"]) == 3
    assert (
        "--explain-if compares the probability with 2: give a number above 0 and at most 1" in capsys.readouterr().err
    )
    assert main(["explain", "0.png", "--explain-if", "unsure"]) == 3
    assert "'unsure' is no condition for --explain-if: write 'probability < 0.8'" in capsys.readouterr().err
    assert main(["explain", "0.png", "--explain-if", "class in cow"]) == 3
    assert "north-west" in capsys.readouterr().err
