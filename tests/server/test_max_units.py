"""max_units: a call stops before it might spend more, and gives out what was paid."""

import asyncio
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support import books

from keylock.cli import explain, main
from keylock.licensing import Quota
from keylock.store import LicenseStore
from keylock.v1 import explanation_pb2 as pb
from keylock_client import AsyncClient, Client, InputError, SpendingLimitError
from keylock_client._budget import Budget
from keylock_client._streams import Images
from keylock_client._sync_stream import Feed
from keylock_client.charges import Usage


def test_room_is_counted_with_what_is_under_way():
    budget = Budget(10, 3)
    assert [budget.has_room(under_way) for under_way in range(5)] == [True, True, True, None, None]
    budget.spent = 9
    assert budget.has_room(0) is False
    assert Budget(0, 0).has_room(9) is True


def test_what_is_answered_again_counts_where_this_call_has_sent_it_before():
    budget = Budget(10, 3)
    usage = Usage(3, "lic", replayed=True, overage_units=0, remaining=None, resets_at=None, charged_at=None)
    budget.count(usage, again=False)
    assert budget.spent == 0
    budget.count(usage, again=True)
    budget.count(replace(usage, replayed=False, units=5), again=False)
    # The price was changed meanwhile, so that the next image may cost as much.
    assert (budget.spent, budget.has_room(0)) == (8, False)


def test_an_answer_that_is_being_counted_leaves_no_image_out(tiny, monkeypatch):
    """Between its price being spent and its being under way no more, there seems to be no room."""
    images, stopped = Images(pb.ExplainRequest(), request_id=None, total=None), threading.Event()
    images.budget = Budget(6, 3)
    feed = Feed(images, tiny.images(3), in_flight=4)
    assert feed.next(stopped).image.number == 0
    rooms = iter([True, None, True, True])
    with monkeypatch.context() as patch:
        patch.setattr(images, "has_room", lambda: next(rooms))
        assert feed.next(stopped).image.number == 1
    assert not images.budget.exhausted


def test_the_command_line_keeps_to_the_limit(dear, vendor, tiny, tmp_path, monkeypatch, capsys):
    for number in range(4):
        Image.fromarray(tiny.pixels(8, 8, seed=number)).save(tmp_path / f"{number}.png")
    with LicenseStore(dear.url) as store:
        (tmp_path / "acme.license").write_text(vendor.grant(store=store).token)
    monkeypatch.setenv("KEYLOCK_TARGET", dear.server.target)
    monkeypatch.chdir(tmp_path)
    asked = ["explain", *(f"{number}.png" for number in range(4)), "--license-file", "acme.license", "--out", "maps"]
    assert main([*asked, "--max-units", "7"]) == 5
    told = capsys.readouterr()
    assert "error: stopped after 2 images: 6 of 7 units spent, 1 left, and the next" in told.err
    assert "allow more (--max-units) to go on" in told.err
    assert len(list((tmp_path / "maps").iterdir())) == 2
    assert told.out.count("keyed") == 2
    assert main([*asked, "--max-units", "12"]) == 0
    assert main(["explain", "0.png", "--license-file", "acme.license", "--max-units", "2"]) == 5
    said = capsys.readouterr().err
    assert "1 image may cost 3 units, and at most 2 may be spent: nothing was asked" in said
    assert "allow more units (--max-units)" in said


def test_ctrl_c_loses_no_explanation_that_was_charged(dear, vendor, tiny, tmp_path, monkeypatch, capsys):
    for number in range(40):
        Image.fromarray(tiny.pixels(8, 8, seed=number)).save(tmp_path / f"{number}.png")
    with LicenseStore(dear.url) as store:
        (tmp_path / "acme.license").write_text(vendor.grant(store=store).token)
        begun = books(store)[1]
    save, saved = explain._save, []

    def press(explanation, file, credentials):
        # By now the server has charged and answered what else was sent.
        if not saved:
            time.sleep(1)
            signal.raise_signal(signal.SIGINT)
        saved.append(save(explanation, file, credentials))
        return saved[-1]

    monkeypatch.setattr(explain, "_save", press)
    monkeypatch.setenv("KEYLOCK_TARGET", dear.server.target)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    images = [f"{number}.png" for number in range(40)]
    code = main(["explain", *images, "--license-file", "acme.license", "--out", "maps"])
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    told = capsys.readouterr()
    assert code == 130, told.err
    assert 1 < len(saved) < 40
    assert f"stopped: {len(saved)} of 40 images were explained" in told.err
    assert told.out.count("keyed") == len(list((tmp_path / "maps").iterdir())) == len(saved)
    with LicenseStore(dear.url) as store:
        assert books(store)[1] - begun == 3 * len(saved)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "10"])
def test_what_is_no_number_of_units_is_refused(wrong):
    with Client("localhost:1") as client:
        with pytest.raises(InputError, match="max_units"):
            client.explain(np.zeros((8, 8, 3), np.uint8), max_units=wrong)
        with pytest.raises(InputError, match="max_units"):
            client.explain_many([], max_units=wrong)


@pytest.fixture(scope="module")
def dear(start_server, tmp_path_factory):
    """A server where an image costs three units, with a store of its own."""
    url = f"sqlite:///{tmp_path_factory.mktemp('dear') / 'store.db'}"
    calls = start_server(license_store=url, prices={"*": 3})
    calls.url = url
    return calls


@pytest.fixture
def spending(dear, vendor):
    """A license, a client with it, and what the store has charged."""
    with LicenseStore(dear.url) as store:
        granted = vendor.grant(store=store, quota=Quota(total=1000))
        begun = books(store)[1]
        with Client(dear.server.target, license=granted.token) as client:
            yield client, lambda: books(store)[1] - begun
        # A server hears a little later that a caller has gone.
        until = time.monotonic() + 10
        while books(store)[2] and time.monotonic() < until:
            time.sleep(0.05)
        assert books(store)[2] == 0


def test_a_call_that_may_cost_more_asks_nothing(spending, tiny):
    client, spent = spending
    images = list(tiny.images(4))
    with pytest.raises(SpendingLimitError, match="4 images may cost 12 units, and at most 11") as caught:
        client.explain(images, max_units=11)
    assert (caught.value.max_units, caught.value.spent, spent()) == (11, 0, 0)
    assert len(client.explain(images, max_units=12)) == 4
    assert spent() == 12


@pytest.mark.parametrize(("max_units", "answered"), [(0, 0), (2, 0), (3, 1), (11, 3), (12, 4)])
def test_a_stream_stops_before_it_may_cost_more(spending, tiny, max_units, answered):
    client, spent = spending
    found = []
    with pytest.raises(
        SpendingLimitError, match=rf"stopped after {answered} images?: \d+ of {max_units} units spent"
    ) as caught:
        found.extend(client.explain_many(tiny.images(9), max_units=max_units, in_flight=4))
    assert sorted(one.number for one in found) == list(range(answered))
    assert all(one.explanation.keyed for one in found)
    assert spent() == caught.value.spent == 3 * answered


def test_a_stream_that_just_fits_ends_well(spending, tiny):
    client, spent = spending
    assert len(list(client.explain_many(tiny.images(5), max_units=15, in_flight=2))) == 5
    assert spent() == 15
    assert list(client.explain_many([], max_units=0)) == []


def test_what_was_charged_before_costs_nothing(spending, tiny):
    client, spent = spending
    list(client.explain_many(tiny.images(3), request_id="again"))
    # The price of a repeat is not known before it is made, so there has to be room for one image.
    found = []
    with pytest.raises(SpendingLimitError):
        found.extend(client.explain_many(tiny.images(6), request_id="again", max_units=3, in_flight=1))
    assert [one.explanation.usage.replayed for one in found] == [True, True, True, False]
    assert spent() == 12


def test_images_that_do_not_meet_a_condition_leave_room_for_others(spending, tiny):
    client, spent = spending
    images = [*tiny.images(4) * 9, *tiny.images(2) * 0.001]
    options = {"explain_if": "probability < 0.3", "max_units": 5, "in_flight": 3}
    found = []
    with pytest.raises(SpendingLimitError):
        found.extend(client.explain_many(images, **options))
    assert [one.explanation.explained for one in sorted(found, key=lambda one: one.number)] == [False] * 4 + [True]
    assert spent() == 3


def test_a_caller_who_takes_time_is_not_in_the_way(spending, tiny):
    client, spent = spending
    results = client.explain_many(iter(tiny.images(9)), max_units=7, in_flight=8)
    for _ in range(2):
        next(results)
        threading.Event().wait(0.05)
    with pytest.raises(SpendingLimitError):
        next(results)
    assert spent() == 6


def test_leaving_early_ends_the_stream_that_waits_for_room(spending, tiny):
    client, spent = spending
    for _ in client.explain_many(iter(tiny.images(9)), max_units=6, in_flight=8):
        break
    assert spent() <= 6


def test_without_a_license_nothing_costs_anything(dear, tiny):
    with Client(dear.server.target) as client:
        assert len(list(client.explain_many(tiny.images(3), max_units=0))) == 3
        assert not client.explain(tiny.images(1)[0], max_units=0).keyed


def test_asyncio_stops_too(dear, vendor, tiny):
    with LicenseStore(dear.url) as store:
        granted = vendor.grant(store=store)
        begun = books(store)[1]

        async def run():
            async with AsyncClient(dear.server.target, license=granted.token) as client:
                with pytest.raises(SpendingLimitError):
                    await client.explain(list(tiny.images(4)), max_units=11)
                stopped = client.explain_many(tiny.images(9), max_units=10, in_flight=8)
                found = [await anext(stopped) for _ in range(3)]
                with pytest.raises(SpendingLimitError):
                    await anext(stopped)
                return found, [one async for one in client.explain_many(tiny.images(3), max_units=9, in_flight=2)]

        stopped, whole = asyncio.run(run())
        assert (len(stopped), len(whole)) == (3, 3)
        assert books(store)[1:] == (begun + 18, 0)
