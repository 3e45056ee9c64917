"""Jobs with a condition, without Ray: which images are explained, written and charged, whatever is done again."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra ray")

from bulk_jobs import cashier_of, draw, made_job, order_for
from pyarrow import parquet

import keylock
from keylock.bulk import Budget
from keylock.bulk.checking import check_job
from keylock.bulk.job import Asked, Job
from keylock.bulk.parts import read_charged, read_maps
from keylock.bulk.run import _Actor, _rows
from keylock.bulk.worker import BlockResult
from keylock.errors import QuotaError, RequestReusedError
from keylock.licensing import Quota
from keylock.licensing.conditions import Condition
from keylock.licensing.receipts import Receipt
from keylock.store.logged_charges import compare_with_ledger
from keylock.store.reconcile import reconcile
from keylock_client import SpendingLimitError

# Blocks of four images, of which the last is none; grad_cam at three units.
IMAGES, NONE_LAST = 11, 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("pictures") / "data", IMAGES, broken=NONE_LAST)


@pytest.fixture(scope="module")
def known(vendor, data, tmp_path_factory):
    """What a job without a condition finds, by which the others are judged: logits, maps, and numbers between them."""
    job = made_job(vendor, data, tmp_path_factory.mktemp("known") / "out")
    parts = [job.unfinished / result.written for result in explain(vendor, job)]
    tables = [parquet.read_table(part) for part in parts]
    logits = np.array([one for table in tables for one in table.column("logits").to_pylist() if one is not None])
    powers = np.exp(logits - logits.max(1, keepdims=True))
    ordered = np.sort(powers / powers.sum(1, keepdims=True), axis=1)
    probabilities, margins = ordered[:, -1], ordered[:, -1] - ordered[:, -2]
    maps = [saliency for part in parts for _, saliency in read_charged(part)]
    return SimpleNamespace(probabilities=probabilities, margins=margins, maps=maps)


def middle(values):
    """A number in the widest gap between the values in the middle, so that last bits do not matter."""
    ordered = np.sort(values)[3:-3]
    place = np.diff(ordered).argmax()
    return float(ordered[place : place + 2].mean())


def conditional_job(vendor, data, folder, condition, **changes):
    return made_job(vendor, data, folder, explain_if=str(Condition.parse(condition, ("a", "b", "c"))), **changes)


def explain(vendor, job, cashier=None, **changes):
    """Does all blocks as a worker of Ray does, which gets its rows and gives its texts."""
    actor = _Actor(order_for(vendor, job, **changes), keylock.__version__)
    results = []
    for row in _rows(job, job.blocks, cashier):
        answer = actor({name: np.array([value]) for name, value in row.items()})
        results.append(BlockResult.of_text(answer["result"][0]))
        assert results[-1].error is None
    return results


def explained_by(results):
    return [one for result in results for one in result.answer.explained]


def books_agree(vendor):
    with vendor.store.database.transaction(snapshot=True) as connection:
        assert compare_with_ledger(connection) == ()
        assert reconcile(connection).differences == ()


@pytest.mark.parametrize("kind", ["probability", "margin"])
def test_those_below_are_explained_and_all_are_predicted(vendor, data, known, tmp_path, kind):
    values = known.probabilities if kind == "probability" else known.margins
    below = middle(values)
    job = conditional_job(vendor, data, tmp_path / "out", f"{kind} < {below!r}")
    results = explain(vendor, job)
    hits = values < below
    assert 0 < hits.sum() < IMAGES
    assert explained_by(results) == hits.tolist()
    rows = [row for result in results for row in parquet.read_table(job.unfinished / result.written).to_pylist()]
    assert [row["explained"] for row in rows] == [*hits.tolist(), False]
    assert [row["probability"] for row in rows[:IMAGES]] == pytest.approx(known.probabilities, abs=1e-6)
    for row in rows:
        there = row["explained"]
        assert [row[name] is not None for name in ("map", "target_index", "target_label", "keyed")] == [there] * 4
    assert rows[-1]["error"] is not None
    assert (rows[-1]["label"], rows[-1]["logits"]) == (None, None)
    maps = [saliency for result in results for _, saliency in read_charged(job.unfinished / result.written)]
    for found, hit, expected in zip(maps, hits, known.maps, strict=True):
        assert (found is not None) == hit
        if hit:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_classes_choose_by_name_and_by_index(vendor, data, tmp_path):
    for number, (condition, all_of_them) in enumerate(
        (("class in c", True), ("class in 2, 0", True), ("class in a, b", False))
    ):
        job = conditional_job(vendor, data, tmp_path / str(number), condition)
        assert explained_by(explain(vendor, job)) == [all_of_them] * IMAGES


def test_decoys_are_made_for_the_same_images(vendor, data, known, tmp_path):
    below = middle(known.margins)
    job = conditional_job(vendor, data, tmp_path / "out", f"margin < {below!r}", keyed=False)
    results = explain(vendor, job)
    assert explained_by(results) == (known.margins < below).tolist()
    for result in results:
        job.keep(result.number, result.written, None)
        rows = parquet.read_table(job.result(result.number)).to_pylist()
        assert {row["keyed"] for row in rows if row["explained"]} <= {False}
    assert check_job(job, []).problems == []


def test_those_with_a_map_are_charged_and_the_receipt_is_for_all(vendor, data, known, tmp_path):
    below = middle(known.probabilities)
    license = vendor.grant()
    job = conditional_job(vendor, data, tmp_path / "out", f"probability < {below!r}", license=license.stem)
    cashier, _ = cashier_of(vendor, license)
    for result in explain(vendor, job):
        job.keep(result.number, result.written, cashier.charge(job, result))
    hits = int((known.probabilities < below).sum())
    assert cashier.units == 3 * hits
    found = check_job(job, [vendor.signing_key.verifying_key])
    assert found.problems == []
    assert (found.images, found.explained, found.units, found.receipts) == (12, hits, 3 * hits, 3)
    assert job.explained() == hits
    charge = Receipt.verify(job.receipt(0).read_text(), lambda _: True).charge
    assert charge.explain_if == Condition("probability_below", below=below)
    assert len(charge.image_digests) == len(charge.answer.predictions) == 4
    books_agree(vendor)
    for other in (f"probability < {below - 0.01!r}", f"margin < {below!r}", "class in 0"):
        told = check_job(replace(job, asked=replace(job.asked, explain_if=other)), []).problems
        assert any(f"explained, against {other}" in one for one in told)
    # Another map, or none, in the place of one.
    other = [
        block.number for block in job.blocks if any(one is not None for _, one in read_maps(job.result(block.number)))
    ]
    shutil.copy(job.receipt(other[0]), job.receipt(other[-1]))
    assert check_job(job, [vendor.signing_key.verifying_key]).problems
    cashier.close()


def test_block_without_any_map_costs_nothing_and_has_a_receipt(vendor, data, tmp_path):
    license = vendor.grant(quota=Quota(total=12))
    job = conditional_job(vendor, data, tmp_path / "out", "class in a", license=license.stem)
    cashier, _ = cashier_of(vendor, license)
    for result in explain(vendor, job):
        receipt = cashier.charge(job, result)
        job.keep(result.number, result.written, receipt)
        charge = Receipt.verify(receipt, lambda _: True).charge
        assert (charge.units, set(charge.answer.maps)) == (0, {None})
    assert (cashier.units, cashier.left()) == (0, 4)
    assert check_job(job, [vendor.signing_key.verifying_key]).problems == []
    # Its column with maps has the type and the shape of the others, so that all can be read as one table.
    kinds = {parquet.read_schema(job.result(block.number)).field("map").type for block in job.blocks}
    assert [str(kind) for kind in kinds] == ["extension<arrow.fixed_shape_tensor[value_type=float, shape=[8,8]]>"]
    cashier.close()
    books_agree(vendor)


def test_units_are_set_aside_for_all_as_a_server_does(vendor, data, tmp_path):
    license = vendor.grant(quota=Quota(total=11))
    job = conditional_job(vendor, data, tmp_path / "out", "class in a", license=license.stem)
    cashier, _ = cashier_of(vendor, license)
    with pytest.raises(QuotaError, match="11 of 11 units left"):
        cashier.charge(job, explain(vendor, job)[0])
    assert cashier.left() == 3
    cashier.close()
    books_agree(vendor)


def test_block_that_was_charged_and_not_kept_has_the_same_maps_again(vendor, data, known, tmp_path, monkeypatch):
    """A prediction may come out another in its last bits, on the other side of the condition."""
    below = middle(known.probabilities)
    license = vendor.grant()
    job = conditional_job(vendor, data, tmp_path / "out", f"probability < {below!r}", license=license.stem)
    first, _ = cashier_of(vendor, license)
    results = explain(vendor, job)
    receipts = [first.charge(job, result) for result in results]
    first.close()
    holds = Condition.holds
    monkeypatch.setattr(Condition, "holds", lambda self, told: not holds(self, told))
    second, _ = cashier_of(vendor, license)
    second.look_up(job)
    assert second.earlier == first.units > 0
    again = explain(vendor, job, second)
    assert explained_by(again) == explained_by(results)
    for result, receipt in zip(again, receipts, strict=True):
        assert second.is_charged(job, result.number)
        repeated = Receipt.verify(second.charge(job, result), lambda _: True)
        assert repeated.entry == Receipt.verify(receipt, lambda _: True).entry
        assert repeated.usage.replayed
    assert second.units == 0
    second.close()
    books_agree(vendor)


def test_images_that_were_changed_after_the_charge_are_not_explained_under_it(vendor, tmp_path):
    data, license = draw(tmp_path / "data", 4), vendor.grant()
    job = conditional_job(vendor, data, tmp_path / "out", "class in c", license=license.stem)
    cashier, _ = cashier_of(vendor, license)
    cashier.charge(job, explain(vendor, job)[0])
    shutil.copy(next(data.glob("*.png")), data / "below" / "001.png")
    cashier.look_up(job)
    with pytest.raises(RequestReusedError):
        cashier.charge(job, explain(vendor, job, cashier)[0])
    # One that cannot be decoded any more, so that more is told of than there is.
    (data / "000.png").write_bytes(b"nothing")
    with pytest.raises(RequestReusedError):
        cashier.charge(job, explain(vendor, job, cashier)[0])
    cashier.close()
    books_agree(vendor)


def test_condition_is_a_part_of_what_a_job_is(vendor, data, tmp_path):
    from keylock.errors import InputError

    job = conditional_job(vendor, data, tmp_path / "out", "class in c, a")
    for same in ("class in a, c", "class in 0,2", 'class in "c", 0'):
        asked = replace(job.asked, explain_if=str(Condition.parse(same, ("a", "b", "c"))))
        assert Job.find(job.folder, asked).id == job.id
    for other in (None, "class in 1", "probability < 0.5"):
        with pytest.raises(InputError, match="another job, with another --explain-if"):
            Job.find(job.folder, replace(job.asked, explain_if=other))


def test_condition_is_read_again_as_it_was():
    for condition in (
        Condition("probability_below", 0.1 + 0.2),
        Condition("margin_below", 5e-324),
        Condition("predicted", 0.0, (1, 2)),
    ):
        assert Condition.parse(str(condition), ("a", "b", "c")) == condition


# How much a job may cost.


def budget_of(job, cashier, max_units):
    cashier.look_up(job)
    return Budget(job, cashier, max_units)


@pytest.mark.parametrize(
    ("max_units", "chosen"), [(0, None), (11, None), (12, [0]), (23, [0]), (24, [0, 1]), (35, [0, 1]), (36, [0, 1, 2])]
)
def test_blocks_are_begun_that_surely_fit(vendor, data, tmp_path, max_units, chosen):
    license = vendor.grant()
    job = made_job(vendor, data, tmp_path / "out", license=license.stem)
    cashier, _ = cashier_of(vendor, license)
    budget = budget_of(job, cashier, max_units)
    if chosen is None:
        with pytest.raises(
            SpendingLimitError, match=rf"0 units .* of {max_units} .* the next block may cost 12"
        ) as caught:
            budget.choose(job.blocks)
        assert (caught.value.max_units, caught.value.spent) == (max_units, 0)
    else:
        assert [block.number for block in budget.choose(job.blocks)] == chosen
    assert budget.choose([]) == []
    cashier.close()


def test_what_earlier_runs_charged_counts_and_is_free_again(vendor, data, tmp_path):
    license = vendor.grant()
    job = made_job(vendor, data, tmp_path / "out", license=license.stem)
    cashier, _ = cashier_of(vendor, license)
    results = explain(vendor, job)
    job.keep(0, results[0].written, cashier.charge(job, results[0]))
    # Charged, and then the run was killed.
    cashier.charge(job, results[2])
    cashier.close()
    again, _ = cashier_of(vendor, license)
    budget = budget_of(job, again, 32)
    assert (again.earlier, budget.left(), budget.affords()) == (12 + 9, 11, 3)
    assert [block.number for block in budget.choose(job.left())] == [2]
    again.charge(job, results[2])
    assert (again.units, budget.left()) == (0, 11)
    with pytest.raises(SpendingLimitError, match=r"stopped after 1 of 3 blocks: 21 units .* of 32 that it may cost"):
        budget.choose(job.left()[:1])
    # Less than was charged already.
    assert budget_of(job, again, 5).left() == 0
    # Other jobs of the license are none of this one.
    assert budget_of(replace(job, id="0123456789abcdef"), again, 32).left() == 32
    again.close()


def test_with_a_condition_the_block_that_is_too_dear_is_not_charged(vendor, data, known, tmp_path):
    below = middle(known.probabilities)
    license = vendor.grant()
    job = conditional_job(vendor, data, tmp_path / "out", f"probability < {below!r}", license=license.stem)
    results = explain(vendor, job)
    costs = [3 * result.explained for result in results]
    assert sum(cost > 0 for cost in costs) >= 2
    cashier, _ = cashier_of(vendor, license)
    budget = budget_of(job, cashier, sum(costs) - 1)
    assert budget.choose(job.blocks) == list(job.blocks)
    stopped = None
    for result in results:
        try:
            budget.check(result)
        except SpendingLimitError as error:
            stopped = error
            break
        cashier.charge(job, result)
    assert stopped is not None
    assert f"the next block costs {costs[result.number]}" in stopped.message
    assert cashier.units == sum(costs[: result.number]) == stopped.spent
    # With less than a map costs, none is begun; with just that, all are.
    with pytest.raises(SpendingLimitError, match="a map costs 3"):
        budget_of(replace(job, id="0123456789abcdef"), cashier, 2 + cashier.units).choose(job.blocks)
    assert len(Budget(replace(job, id="0123456789abcdef"), cashier, 3 + cashier.units).choose(job.blocks)) == 3
    cashier.close()
    books_agree(vendor)


def test_what_was_set_aside_at_another_price_counts_at_that_price(vendor, data, tmp_path, monkeypatch):
    """A run was killed between setting units aside and charging them, and then the price was lowered."""
    license = vendor.grant()
    job = made_job(vendor, data, tmp_path / "out", license=license.stem)
    [first, *_] = explain(vendor, job)
    dear, _ = cashier_of(vendor, license)
    monkeypatch.setattr(dear._ledger, "commit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dear.charge(job, first)
    cheap, _ = cashier_of(vendor, license, prices={"*": 1})
    budget = budget_of(job, cheap, 11)
    assert (cheap.earlier, budget.left()) == (0, 11)
    with pytest.raises(SpendingLimitError, match="costs 12"):
        budget.check(first)
    cheap.charge(job, first)
    assert cheap.units == 12
    dear.close()
    cheap.close()
    books_agree(vendor)


def test_nothing_limits_what_costs_nothing(vendor, data, tmp_path):
    job = made_job(vendor, data, tmp_path / "out")
    assert Budget(job, None, 0).choose(job.blocks) == list(job.blocks)
    license = vendor.grant()
    free, _ = cashier_of(vendor, license, prices={"*": 0})
    budget = budget_of(replace(job, asked=replace(job.asked, license=license.stem)), free, 0)
    assert budget.choose(job.blocks) == list(job.blocks)
    assert budget.affords() is None
    free.close()


def test_a_job_of_an_earlier_version_has_no_condition(vendor, data, tmp_path):
    import json

    job = made_job(vendor, data, tmp_path / "out")
    about = json.loads((job.folder / "job.json").read_text())
    del about["asked"]["explain_if"]
    (job.folder / "job.json").write_text(json.dumps(about))
    assert Job.find(job.folder, Asked(**about["asked"])).id == job.id
