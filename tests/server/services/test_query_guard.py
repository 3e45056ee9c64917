"""The query guard over a real server: what is refused, to whom, in which words, and what goes on being answered."""

import io
import logging
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from near_copies import PREPROCESSING, SIDE, copies, infer, logits_of, picture, request, use_up
from PIL import Image
from support import bearer, books, details_of, refusal

from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_server.guard import OTHER_UNITS, SAME_UNITS, UNHEARD_UNITS
from keylock_server.services.query_gate import seen

WINDOW_S = 600.0


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def is_refused(call):
    code, details = refusal(call)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["ErrorInfo"].reason == "QUERIES_TOO_SIMILAR"
    return details


def image_of(pixels):
    return pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=pixels.shape, data=pixels.tobytes()))


def test_near_copies_are_answered_within_the_budget_and_then_with_labels_alone(serve):
    calls = serve()
    use_up(calls)
    more = copies(30)[4:]
    details = is_refused(lambda: infer(calls, more[0]))
    assert details["ErrorInfo"].metadata["labels_left"] == "true"
    for outputs in (("logits",), ("probabilities",), ("label", "logits")):
        is_refused(lambda outputs=outputs: infer(calls, more[0], *outputs))
    for image in more[:8]:
        answer = infer(calls, image, "label")
        assert [output.name for output in answer.outputs] == ["label"]
    details = is_refused(lambda: infer(calls, more[8:], "label"))
    assert details["ErrorInfo"].metadata["labels_left"] == "false"
    # Other pictures are none of this.
    assert len(infer(calls, picture(1)).outputs) == 3


def test_a_refusal_says_what_to_do_and_when_and_shows_nothing(serve, server_log):
    calls = serve()
    use_up(calls)
    with pytest.raises(grpc.RpcError) as caught:
        infer(calls, copies(6)[5])
    message, details = caught.value.details(), details_of(caught.value)
    assert "ask for the output label alone" in message
    assert "a license for similar queries" in message
    assert "come again in 10 minutes" in message
    delay = details["RetryInfo"].retry_delay
    assert 0 < delay.seconds <= WINDOW_S
    assert details["ErrorInfo"].metadata["row"] == "0"
    told = [record for record in server_log.records if "near copies" in record.getMessage()]
    assert [record.levelno for record in told if record.levelno > logging.INFO] == [logging.WARNING]
    for number in range(5):
        is_refused(lambda number=number: infer(calls, copies(12)[6 + number]))
    told = [record for record in server_log.records if "query guard refused" in record.getMessage()]
    assert len(told) == 1


def test_identical_requests_are_answered_as_often_as_they_come(serve):
    calls = serve(scores=0, labels=0)
    image = picture()
    first = infer(calls, image)
    asked = request(np.repeat(image[None], 32, axis=0))
    for _ in range(40):
        answer = calls.inference.ModelInfer(asked, timeout=20)
        assert answer.raw_output_contents[0] == first.raw_output_contents[0] * 32
    # Also those whose near copies are refused, and the near copies that were answered.
    is_refused(lambda: infer(calls, copies(1)[0]))
    assert infer(calls, image) == first


def test_the_form_in_which_an_image_travels_makes_no_difference(serve):
    calls = serve(scores=0)
    image = picture()
    infer(calls, image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    ready = PREPROCESSING(image)
    for sent in (pb.Image(encoded=buffer.getvalue()), image_of(image)):
        calls.explain(sent)
    calls.explain(pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=ready.shape, data=ready.tobytes())))
    near = PREPROCESSING(copies(1)[0])
    is_refused(
        lambda: calls.explain(
            pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=near.shape, data=near.tobytes()))
        )
    )


def test_a_batch_is_answered_whole_or_not_at_all(serve):
    calls = serve()
    batch = np.concatenate([picture()[None], copies(8)])
    details = is_refused(lambda: infer(calls, batch))
    assert details["ErrorInfo"].metadata["row"] == "5"
    assert "images[5]" in refusal_text(lambda: infer(calls, batch))
    # What was refused was not counted: all that fits is answered still.
    assert infer(calls, batch[:5], "logits").outputs[0].shape == [5, 4]
    assert len(infer(calls, batch, "label").outputs) == 1


def refusal_text(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.details()


def test_decoys_count_as_scores_and_true_maps_are_never_refused(serve, vendor):
    calls = serve()
    use_up(calls)
    near = copies(30)[4:]
    is_refused(lambda: calls.explain(image_of(near[0])))
    granted = vendor.grant()
    answer = calls.explain(*map(image_of, near), token=granted.token)
    assert [result.keyed for result in answer.results] == [True] * len(near)
    assert answer.usage.units == len(near)


def test_predictions_of_a_customer_are_guarded_unless_the_license_says_otherwise(serve, vendor):
    calls = serve()
    use_up(calls)
    near = copies(30)[4:]
    is_refused(lambda: infer(calls, near, token=vendor.grant().token))
    exempt = vendor.grant(similar_queries=True)
    assert infer(calls, near, "logits", token=exempt.token).outputs[0].shape == [len(near), 4]
    token = calls.license.ExchangeToken(license_pb2.ExchangeTokenRequest(), metadata=bearer(exempt.token)).access_token
    assert infer(calls, near, "logits", token=token).outputs
    # What an exempt caller asks takes nothing from others.
    other = copies(20, seed=5)
    infer(calls, other, token=exempt.token)
    use_up(calls, seed=5)
    assert not calls.explain(image_of(picture(6))).usage.units


def test_a_license_that_is_not_good_says_why_it_does_not_help_and_hinders_nothing(serve, vendor, tiny):
    calls = serve()
    other = vendor.grant(models=("other",), similar_queries=True).token
    unknown = vendor.grant(record=False, similar_queries=True).token
    for token in (other, unknown, "a.b.c"):
        assert infer(calls, picture(), token=token).outputs
    use_up(calls)
    for token, reason in ((other, "LICENSE_WRONG_MODEL"), (unknown, "LICENSE_UNKNOWN")):
        _, details = refusal(lambda token=token: infer(calls, copies(6)[5], token=token))
        assert details["ErrorInfo"].reason == reason
    # What is no license of keylock may be meant for somebody on the way.
    is_refused(lambda: infer(calls, copies(6)[5], token="a.b.c"))


def test_nothing_is_charged_or_computed_for_what_is_refused(serve, vendor, monkeypatch):
    calls = serve()
    use_up(calls)
    model, before = calls.server.model, books(vendor.store)
    for name in ("explain", "predict"):
        monkeypatch.setattr(model, name, lambda *_, **__: pytest.fail("something was computed"))
    is_refused(lambda: infer(calls, copies(6)[5]))
    is_refused(lambda: calls.explain(image_of(copies(6)[5])))
    assert books(vendor.store) == before


def test_images_of_a_stream_are_refused_one_by_one_and_the_stream_goes_on(serve):
    calls = serve()
    frames = [picture(), *copies(10), picture(1)]
    messages = [pb.ExplainStreamRequest(start=pb.ExplainStreamStart(options=pb.ExplainRequest()))]
    for number, frame in enumerate(frames):
        messages.append(pb.ExplainStreamRequest(image=pb.ExplainStreamImage(number=number, image=image_of(frame))))
    answers = list(calls.explanation.ExplainStream(iter(messages), timeout=30))
    failed = {answer.number: answer.failure for answer in answers if answer.HasField("failure")}
    assert len(failed) == 6
    assert len(frames) - 1 not in failed
    assert {failure.code for failure in failed.values()} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}


def test_the_budget_comes_back_when_the_window_is_over(serve):
    clock = Clock()
    calls = serve(clock=clock)
    use_up(calls)
    clock.now += WINDOW_S / 2
    details = is_refused(lambda: infer(calls, copies(6)[5]))
    assert details["RetryInfo"].retry_delay.seconds == pytest.approx(WINDOW_S / 2, abs=1)
    clock.now += WINDOW_S / 2 + 1
    assert infer(calls, copies(6)[5]).outputs


@pytest.mark.parametrize("mode", ["count", "off"])
def test_without_limits_everything_is_answered(serve, mode):
    calls = serve(query_guard=mode)
    use_up(calls, count=30)
    status = calls.loop_thread.run(calls.server.parts.gate.status())
    assert status.mode == mode
    assert (status.near_copies, status.refused) == ((0, 0) if mode == "off" else (4, 26))


def test_many_callers_at_once_share_one_budget(serve):
    calls = serve()
    infer(calls, picture())

    def ask(image):
        with grpc.insecure_channel(calls.server.target) as channel:
            own = SimpleNamespace(inference=type(calls.inference)(channel))
            try:
                return bool(infer(own, image).outputs)
            except grpc.RpcError as error:
                return details_of(error)["ErrorInfo"].reason

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, copies(24)))
    assert found.count(True) == 4
    assert found.count("QUERIES_TOO_SIMILAR") == 20


@pytest.mark.parametrize("value", [0, 128, 255])
def test_pictures_of_one_colour_are_answered(serve, value):
    calls = serve(scores=0, labels=0)
    for level in range(8):
        infer(calls, np.full((SIDE, SIDE, 3), abs(value - level), np.uint8))
    for side in (1, 2, 3):
        infer(calls, np.full((side, side, 3), value, np.uint8))


def test_a_memory_that_is_full_forgets_the_oldest_and_answers(serve):
    calls = serve(query_guard_memory_bytes=2**20)
    for seed in range(0, 2048, 32):
        infer(calls, np.stack([picture(seed + number) for number in range(32)]), "label")
    use_up(calls, seed=10_000)
    is_refused(lambda: infer(calls, copies(6, seed=10_000)[5]))
    status = calls.loop_thread.run(calls.server.parts.gate.status())
    assert status.memory_bytes == 2**20


def test_metrics_and_operators_are_told_numbers_alone(serve):
    calls = serve(metrics_port=0)
    use_up(calls)
    is_refused(lambda: infer(calls, copies(6)[5]))
    infer(calls, picture())
    with urllib.request.urlopen(f"http://127.0.0.1:{calls.server.metrics_port}/metrics") as page:
        text = page.read().decode()
    found = dict(re.findall(r'^keylock_guarded_images_total\{outcome="(\w+)"\} ([\d.]+)$', text, re.M))
    assert found == {"other": "1.0", "identical": "1.0", "near_copy": "4.0", "refused": "1.0"}
    assert 'reason="QUERIES_TOO_SIMILAR"' in text
    status = calls.loop_thread.run(calls.server.parts.gate.status())
    assert (status.mode, status.images, status.near_copies, status.identical, status.refused, status.pictures) == (
        "limit",
        7,
        4,
        1,
        1,
        1,
    )


def shown(images):
    """What the guard is given of preprocessed images, as pixels."""
    given = seen(images, PREPROCESSING)
    return given["pixels"] * given.get("scale", np.float32(1)) + given.get("shift", np.float32(0))


def test_tensors_that_no_picture_has_are_told_apart_and_do_not_overflow():
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, size=(2, 3, SIDE, SIDE)).astype(np.float32)
    plain = images.transpose(0, 2, 3, 1) * np.float32(PREPROCESSING.std) + np.float32(PREPROCESSING.mean)
    np.testing.assert_allclose(shown(images), plain, rtol=1e-6)
    assert np.shares_memory(seen(images, PREPROCESSING)["pixels"], images)
    for factor in (1e3, 1e30, 3e38 / np.abs(images).max()):
        large = shown(images * np.float32(factor))
        assert np.isfinite(large).all()
        assert np.abs(large).max() < 200
        changed = images.copy()
        changed[0, 0, 3, 3] *= 1.01
        assert (shown(changed * np.float32(factor)) != large).sum() == 1


def views(count, quadrants):
    """Copies of a picture that differ in a pixel, and in the quadrant that is a little brighter and gives the label."""
    half = SIDE // 2
    part = picture()[:half, :half] // 2
    upper = np.concatenate([part, part[:, ::-1]], axis=1)
    made = np.repeat(np.concatenate([upper, upper[::-1]])[None], count, axis=0)
    for number, (view, quadrant) in enumerate(zip(made, quadrants, strict=True)):
        top, left = quadrant // 2 * half, quadrant % 2 * half
        view[top : top + half, left : left + half] += 4
        view[number % SIDE, SIDE - 1 - number // SIDE] ^= 3
        assert logits_of(view).argmax() == quadrant
    return made


def answered(calls, images):
    """How many images are answered with a label, one after the other, until one is refused."""
    for number, image in enumerate(images):
        try:
            infer(calls, image, "label")
        except grpc.RpcError:
            is_refused(lambda image=image: infer(calls, image, "label"))
            return number
    return len(images)


def test_copies_with_the_label_of_their_picture_go_on_and_others_end_soon(serve):
    limit = OTHER_UNITS + UNHEARD_UNITS
    calls = serve(labels=limit)
    assert answered(calls, views(50, 50 * [0])) == 2 + (limit - UNHEARD_UNITS) // SAME_UNITS
    calls = serve(labels=limit)
    # After one copy with another label there is room for one whose label is not known yet.
    assert answered(calls, views(50, [0, 1] * 25)) == 3


def test_labels_are_heard_of_in_batches_and_streams_and_with_decoys(serve):
    same, other = views(4, 4 * [0]), views(4, [0, 1, 1, 1])
    for batch, units in ((same, 3 * SAME_UNITS), (other, OTHER_UNITS + 2 * SAME_UNITS)):
        calls = serve(scores=100, labels=1000)
        infer(calls, batch)
        assert calls.server.parts.gate._guard._memory._groups["units"].max() == units
        calls = serve(scores=100, labels=1000)
        calls.explain(*map(image_of, batch))
        assert calls.server.parts.gate._guard._memory._groups["units"].max() == units
        calls = serve(scores=100, labels=1000)
        messages = [pb.ExplainStreamRequest(start=pb.ExplainStreamStart(options=pb.ExplainRequest()))]
        messages += [
            pb.ExplainStreamRequest(image=pb.ExplainStreamImage(number=number, image=image_of(frame)))
            for number, frame in enumerate(batch)
        ]
        assert len(list(calls.explanation.ExplainStream(iter(messages), timeout=30))) == 4
        # Images of a stream are answered side by side, so that any of them can be the first.
        assert calls.server.parts.gate._guard._memory._groups["units"].max() in (
            units,
            2 * OTHER_UNITS + SAME_UNITS,
        )


def test_a_call_that_fails_is_charged_once_and_hinders_nothing(serve, monkeypatch):
    calls = serve(labels=3 * UNHEARD_UNITS)
    image, *more = copies(4)
    infer(calls, image, "label")
    model = calls.server.model
    with monkeypatch.context() as broken:
        broken.setattr(model, "predict", lambda *_, **__: 1 / 0)
        with pytest.raises(grpc.RpcError):
            infer(calls, more[0], "label")
    # It is answered when it is asked for again, and the others while there is room.
    assert infer(calls, more[0], "label").outputs
    assert answered(calls, more) >= 2
    assert infer(calls, picture(1)).outputs


def test_with_count_operators_see_what_would_be_refused(serve):
    calls = serve(query_guard="count", metrics_port=0)
    use_up(calls)
    infer(calls, copies(6)[5])
    infer(calls, copies(6)[4:])
    with urllib.request.urlopen(f"http://127.0.0.1:{calls.server.metrics_port}/metrics") as page:
        text = page.read().decode()
    found = dict(re.findall(r'^keylock_guarded_images_total\{outcome="(\w+)"\} ([\d.]+)$', text, re.M))
    assert found == {"other": "1.0", "identical": "0.0", "near_copy": "4.0", "would_be_refused": "3.0"}
    status = calls.loop_thread.run(calls.server.parts.gate.status())
    assert (status.mode, status.near_copies, status.refused) == ("count", 4, 3)
