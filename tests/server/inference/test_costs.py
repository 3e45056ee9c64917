"""costs.py: proposed prices follow from what was measured, and the command prints a setting of the server."""

import itertools
import json
import tomllib

import pytest

from keylock.cli import main
from keylock_server import ServerSettings
from keylock_server.inference.costs import measure_costs
from keylock_server.inference.model_loader import open_model


@pytest.fixture(scope="module")
def model(vendor):
    return open_model(ServerSettings(bundle=vendor.bundle, keyless=True))[0]


def clock_of(*seconds):
    """A clock on which runs take so long by turns: it is read before a run, and twice after it."""
    times = itertools.chain.from_iterable((0.0, one, one) for one in itertools.cycle(seconds))
    return lambda: next(times)


def test_units_are_multiples_of_the_cheapest_explainer(model):
    found = measure_costs(model, rounds=2, batch=1, clock=clock_of(0.25, 0.5, 1.74))
    assert [one.name for one in found] == list(model.explainers)
    assert [one.units for one in found] == [1, 3]
    assert [one.cpu_ms for one in found] == [500.0, 1740.0]
    assert [one.predictions for one in found] == [2.0, 6.96]
    assert [one.passes for one in found] == [1, 1]


def test_the_median_of_the_rounds_counts_and_a_batch_is_shared_by_its_images(model):
    warm_up = (9.0, 9.0, 9.0)
    rounds = [(0.4, 0.4, 0.8), (0.4, 0.4, 8.0), (0.4, 0.4, 0.8)]
    found = measure_costs(model, rounds=3, batch=4, clock=clock_of(*warm_up, *itertools.chain(*rounds)))
    assert [(one.units, one.cpu_ms) for one in found] == [(1, 100.0), (2, 200.0)]


def test_the_command_prints_a_setting_of_the_server(vendor, capsys):
    assert main(["prices", "suggest", str(vendor.bundle), "--rounds", "1"]) == 0
    told = capsys.readouterr()
    table, setting = told.out.split("\n[prices]\n")
    prices = tomllib.loads("[prices]\n" + setting)["prices"]
    assert prices.keys() == {"brightness", "coarse"}
    assert min(prices.values()) == 1
    assert ServerSettings(bundle=vendor.bundle, keyless=True, prices=prices).prices == prices
    assert "ms of a core" in table
    assert main(["prices", "suggest", str(vendor.bundle), "--rounds", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prices"].keys() == prices.keys()
    assert all(one["cpu_ms"] > 0 for one in document["explainers"])


def test_what_is_no_bundle_is_an_error(tmp_path, capsys):
    assert main(["prices", "suggest", str(tmp_path / "none.klb")]) != 0
    assert capsys.readouterr().err.startswith("error: ")
