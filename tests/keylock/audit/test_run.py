"""A whole audit of toys: resumed, judged, drawn, signed; and what a baseline lock does in it."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from html_page import Page
from toys import BUDGET, Constant, Toy, make_case

from keylock.audit import ATTACKS, AuditPlan, Knowledge, Policy, run_audit
from keylock.audit.attacks.guesses import merit_of
from keylock.audit.baseline import BASELINE_ATTACKS, baseline_case
from keylock.audit.contract import NotApplicableError, Outcome, Steps, attack, attacks_of
from keylock.audit.judging import judge
from keylock.audit.oracle import Oracle
from keylock.audit.publish import publish_audit
from keylock.audit.scoring import SELF, recoveries
from keylock.audit.views import PublicView
from keylock.auditreport.record import Finding, Recovery
from keylock.auditreport.signed import page_digest, sign_audit, verify_audit
from keylock.crypto.signing import SigningKey
from keylock.errors import InputError, SignatureError, UnknownNameError
from keylock.explainers import GradCAM, Gradient
from keylock.training import Silent

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
QUICKLY = ("keyless", "other_classes", "fine_tune/few_0.01", "fine_tune/many_0.01", "detect/faithfulness", "base_model")


def plan_of(folder, only=QUICKLY, **changes):
    return AuditPlan(**{"out": folder, "suite": "quick", "only": only, "budget": BUDGET, **changes})


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    case, plan = make_case(Constant()), plan_of(folder)
    return case, plan, run_audit(case, plan, progress=Silent())


def test_findings_are_sorted_worst_first(audited):
    _, _, result = audited
    verdicts = [one.verdict for one in result.judged]
    assert verdicts[0] == "fail"
    assert result.judged[0].finding.attack == "other_classes"
    assert verdicts[-1] == "skipped"
    assert result.judged[-1].finding.reason.endswith("name one (base=)")
    advantages = [one.advantage for one in result.judged if one.verdict == "fail"]
    assert advantages == sorted(advantages, reverse=True)


def test_a_finished_attack_is_not_run_again(audited, monkeypatch):
    case, plan, result = audited

    def forbidden(*_arguments):
        raise AssertionError("it ran again")

    for name in ("keyless", "other_classes", "fine_tune/few_0.01", "fine_tune/many_0.01", "detect/faithfulness"):
        monkeypatch.setitem(ATTACKS, name, replace(ATTACKS[name], run=forbidden))
    again = run_audit(case, plan, progress=Silent())
    assert again.judged == result.judged
    with pytest.raises(AssertionError):
        run_audit(case, replace(plan, seed=1), progress=Silent())


def test_a_damaged_outcome_is_made_anew(audited):
    case, plan, result = audited
    place = plan.out / "outcomes" / "keyless.json"
    place.write_text(place.read_text()[:50])
    assert {one.verdict for one in run_audit(case, plan, progress=Silent()).judged} == {
        one.verdict for one in result.judged
    }
    assert json.loads(place.read_text())["found"]["attack"] == "keyless"


def test_another_policy_judges_anew_without_running(audited):
    case, plan, _ = audited
    lenient = Policy.model_validate({"t0": {"max_pcc": 1.0}, "t1": {"max_pcc": 1.0}})
    assert not any(
        one.verdict == "fail" for one in run_audit(case, replace(plan, policy=lenient), progress=Silent()).judged
    )


def test_an_interrupted_attack_leaves_the_finished_ones(tmp_path, monkeypatch):
    def stopped(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(ATTACKS, "other_classes", replace(ATTACKS["other_classes"], run=stopped))
    with pytest.raises(KeyboardInterrupt):
        run_audit(make_case(Constant()), plan_of(tmp_path), progress=Silent())
    finished = {file.stem for file in (tmp_path / "outcomes").glob("*.json")}
    assert finished == {"keyless"}


def test_the_own_model_is_the_baseline_of_whoever_trains(audited):
    _, plan, result = audited
    tuned = {one.finding.attack: one for one in result.judged}["fine_tune/many_0.01"]
    recovery = tuned.recovery
    assert tuned.own >= recovery.chance
    assert tuned.advantage == pytest.approx(recovery.found - tuned.own, abs=1e-4)
    assert len(list((plan.out / "own-models").glob("own-*"))) == 2


def test_an_own_network_is_trained_until_it_is_as_accurate_or_the_budget_ends(audited):
    case, plan, result = audited
    own = result.own
    assert own.wanted == 1
    assert 0 < own.steps <= BUDGET.accurate_steps
    assert own.accuracy == own.wanted or own.steps == BUDGET.accurate_steps
    assert {one.truth for one in own.recoveries} == set(case.explainers)
    untrained = run_audit(case, replace(plan, only=("keyless",)), progress=Silent())
    assert untrained.own is None


def test_the_report_says_what_was_found(audited):
    case, plan, result = audited
    key = SigningKey.generate()
    pixels = np.zeros((24, 16, 16, 3), np.uint8)
    record = publish_audit(case, plan, result, pixels=pixels, now=lambda: NOW, signing_key=key)
    page = (plan.out / "report.html").read_text()
    read = Page(page)
    read.check()
    for one in record.judged:
        assert one.finding.attack in read.shown
    assert "Audit of toy" in read.shown
    assert read.all("svg")
    assert read.all("img")
    verified = verify_audit((plan.out / "audit.json").read_text(), trusted=[key.verifying_key])
    assert verified.trusted
    assert verified.record == record
    assert verified.page == page_digest(page)


def test_no_changed_figure_is_accepted(audited):
    case, plan, result = audited
    key = SigningKey.generate()
    record = publish_audit(
        case, plan, result, pixels=np.zeros((24, 16, 16, 3), np.uint8), now=lambda: NOW, signing_key=None
    )
    good = sign_audit(record, "<html>", key)
    assert verify_audit(good).key_id == key.key_id
    assert not verify_audit(good).trusted
    document = json.loads(good)
    document["audit"]["judged"][0]["verdict"] = "pass"
    with pytest.raises(SignatureError, match="was not made"):
        verify_audit(json.dumps(document))
    with pytest.raises(SignatureError, match="not one of the keys"):
        verify_audit(good, trusted=[SigningKey.generate().verifying_key])
    with pytest.raises(SignatureError, match="not a signed audit"):
        verify_audit((plan.out / "audit.json").read_text())


def test_t0_is_given_no_module():
    view = make_case(Toy()).view(PublicView)
    reachable = [value for value in vars(view).values() if not callable(value) or isinstance(value, torch.nn.Module)]
    assert not any(isinstance(value, torch.nn.Module) for value in reachable)
    assert not hasattr(view.oracle, "module")


class Stubborn(Oracle):
    """Knows nothing of torch modules: the same answer for everything."""

    def __init__(self):
        super().__init__(("grad_cam",))

    def _predict(self, images):
        return images.flatten(1)[:, :3]

    def _explain(self, name, images, targets):
        return images.abs().mean(dim=1) + targets.view(-1, 1, 1) * 0


def test_explainers_that_are_asked_together_answer_and_count_as_each_by_itself():
    case = make_case(Toy(), explainers={"grad_cam": GradCAM("mix"), "gradient": Gradient()})
    together, alone = case.view(PublicView).oracle, case.view(PublicView).oracle
    targets = torch.tensor([0, 1, 2, 1])
    for chosen in (None, targets):
        found = together.explain_all(case.images[:4], chosen)
        assert list(found) == ["grad_cam", "gradient"]
        for name, maps in found.items():
            torch.testing.assert_close(maps, alone.explain(name, case.images[:4], chosen))
    assert together.queries == alone.queries == 16


def test_keys_that_are_tried_together_have_the_merit_of_each_by_itself():
    view = make_case(Constant()).view(PublicView)
    merit = merit_of(view, 3)
    offsets = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert merit(offsets) == pytest.approx([merit(one.unsqueeze(0))[0] for one in offsets], abs=1e-5)


T0 = [name for name, one in ATTACKS.items() if one.knowledge is Knowledge.T0 and one.group == "T0"]


@pytest.mark.parametrize("name", T0)
def test_t0_attacks_need_an_oracle_alone_and_count_queries(name):
    case = make_case(Toy(), asked=Stubborn)
    budget = replace(BUDGET, guesses=3, climb_steps=2, copies=2, masks=60, few_steps=2, steps=2, slow_images=2)
    budget = replace(budget, copied_images=1, picture_copies=8)
    view = case.view(PublicView)
    found = ATTACKS[name].run(view, budget, torch.Generator().manual_seed(0), Steps(name, Silent()))
    assert 0 < found.cost.queries <= view.oracle.queries


def test_naive_lock_falls(tmp_path):
    budget = replace(BUDGET, steps=60, few_steps=60)
    case = make_case(Toy(), fresh=make_case(Toy()).fresh)
    baseline = baseline_case(case, budget, folder=tmp_path, seed=0, progress=Silent())
    again = baseline_case(case, budget, folder=tmp_path, seed=0, progress=Silent())
    assert all(map(torch.equal, baseline.module.state_dict().values(), again.module.state_dict().values()))
    plan = plan_of(tmp_path, only=BASELINE_ATTACKS, budget=budget)
    judged = run_audit(baseline, plan, progress=Silent()).judged
    assert judged[0].verdict == "fail"
    by_name = {one.finding.attack: one for one in judged}
    assert by_name["batch_norm/reestimated"].finding.status == "done"


def test_empty_true_maps_are_nothing_to_recover():
    truth = torch.rand(4, 8, 8)
    truth[1::2] = torch.tensor([0.0, 0.1]).view(2, 1, 1)
    [found] = recoveries({"grad_cam": truth}, {"grad_cam": truth}, {})

    assert (found.pcc[0], found.images) == (1, 2)
    # Shown instead of a map with contrast, a constant one recovers nothing.
    [found] = recoveries({"grad_cam": torch.full((4, 8, 8), 1 / 3)}, {"grad_cam": truth}, {})
    assert (found.pcc[0], found.top_overlap[0], found.images) == (0, 0, 2)
    assert recoveries({"grad_cam": truth}, {"grad_cam": torch.zeros(4, 8, 8)}, {}) == ()


def test_maps_are_compared_at_the_size_of_the_truth():
    truth = torch.rand(4, 4, 4)
    large = truth.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    found = recoveries({"grad_cam": large, "rise": large}, {"grad_cam": truth}, {"rise": large})
    assert [(one.label, one.truth) for one in found] == [
        ("grad_cam", "grad_cam"),
        ("rise", "grad_cam"),
        ("rise", SELF),
    ]
    assert all(one.pcc[0] == pytest.approx(1, abs=1e-4) for one in found)
    assert all(one.top_overlap[0] == 1 for one in found)


def finding(pcc, chance=0.5, group="T1", attack="some/attack"):
    overlap = (0.1, 0.0, 0.2)
    recovery = Recovery(
        label="m", truth="m", pcc=(pcc, pcc, pcc), top_overlap=overlap, chance=chance, chance_top_overlap=0.1, images=4
    )
    return Finding(attack=attack, group=group, summary="", recoveries=(recovery,))


@pytest.mark.parametrize(
    ("found", "own", "verdict"),
    [
        (finding(0.6), 0.7, "pass"),
        (finding(0.8), 0.7, "fail"),
        (finding(-0.8), 0.7, "fail"),
        (finding(0.45), 0.2, "pass"),
        (finding(0.55), 0.2, "fail"),
        (finding(0.49, group="T0"), 0.2, "pass"),
        (finding(0.51, group="T0"), 0.9, "fail"),
        # Chance counts without its sign as well: what is common to all true maps may be turned upside down.
        (finding(0.49, chance=-0.5, group="T0"), 0.2, "pass"),
        (finding(-0.51, chance=-0.5, group="T0"), 0.2, "fail"),
        (finding(0.99, group="T2"), 0.2, "measured"),
        (finding(0.11, attack="batch_norm/query"), 0.9, "fail"),
        (finding(0.51, attack="key_search/move_tile"), 0.9, "fail"),
    ],
)
def test_verdicts_follow_the_policy(found, own, verdict):
    assert judge(found, Policy.load(), lambda *_: own).verdict == verdict


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[t0]\nmax_pcc = 2", "is wrong at t0.max_pcc: give a number from -1 to 1"),
        ('[attacks."key*"]\nmax_excess = "a"', r"is wrong at attacks.key\*.max_excess: give a number from -1 to 1"),
        ("t1 = 3", "is wrong at t1: give a table of max_pcc, max_excess, max_advantage"),
        ("[service]\nall_good = 3", "is wrong at service.all_good: give true or false"),
        ("[t9]\nmax_pcc = 1", "is wrong at t9: there is nothing of this name in a policy"),
    ],
)
def test_what_is_no_policy_is_refused_in_plain_words(tmp_path, text, said):
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        Policy.load(tmp_path / "policy.toml")


def test_a_policy_of_ones_own(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text('[attacks."some/*"]\nmax_pcc = 0.9\n')
    assert judge(finding(0.89), Policy.load(file), lambda *_: None).verdict == "pass"
    file.write_text("[t1]\nmax_pc = 0.9\n")
    with pytest.raises(InputError, match=r"t1\.max_pc"):
        Policy.load(file)
    file.write_text("no toml")
    with pytest.raises(InputError, match="no TOML"):
        Policy.load(file)
    with pytest.raises(InputError, match="cannot read"):
        Policy.load(tmp_path / "missing.toml")


def test_names_of_attacks_and_families_choose():
    assert [one.name for one in attacks_of("quick", only=("quantise",))] == ["quantise/int8", "quantise/fp16"]
    assert {one.name for one in attacks_of("quick")} < {one.name for one in attacks_of("standard")}
    with pytest.raises(UnknownNameError):
        attacks_of("quick", only=("quantize",))


def test_the_registry_refuses_a_name_twice():
    with pytest.raises(InputError, match="already"):
        attack("keyless", Knowledge.T0, "again")(lambda *_: Outcome())


def test_an_attack_that_does_not_apply_is_skipped_and_tried_again(tmp_path, monkeypatch):
    def never(*_arguments):
        raise NotApplicableError("not here")

    monkeypatch.setitem(ATTACKS, "keyless", replace(ATTACKS["keyless"], run=never))
    [judged] = run_audit(make_case(Toy()), plan_of(tmp_path, only=("keyless",)), progress=Silent()).judged
    assert (judged.verdict, judged.finding.reason) == ("skipped", "not here")
    assert not list((tmp_path / "outcomes").iterdir())
