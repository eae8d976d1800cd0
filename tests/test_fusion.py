"""Semantics of the memory, the weights, the schedule and the state."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dmf_plugins import WEIGHTINGS, DMFConfig, DynamicMemoryFusion
from dmf_plugins.core import SettingsDiffer, Window

from .support.oracle import Oracle
from .support.samples import decreasing, feed

RULES = sorted(WEIGHTINGS)
LEARNED = [rule for rule in RULES if DynamicMemoryFusion(2, weighting=rule).learned]
ADAPTIVE = [rule for rule in RULES if rule != "fixed" and rule not in LEARNED]
STATISTICAL = ["variance", "mad", "bayesian"]  # of the scaled memory, whatever its order


@pytest.mark.parametrize("rule", ["variance", "mad", "bayesian"])
@pytest.mark.parametrize(("memory_size", "min_history"), [(30, 10), (31, 10), (5, 5), (1, 1)])
def test_weights_match_a_float64_oracle(rule, memory_size, min_history):
    fusion = DynamicMemoryFusion(
        3, weighting=rule, memory_size=memory_size, min_history=min_history
    )
    oracle = Oracle(rule, 3, memory_size, min_history)
    for values in decreasing(120):
        fusion(values)
        expected = oracle.step(values.double().numpy())
        np.testing.assert_allclose(fusion.weights.numpy(), expected, atol=5e-5)


finite = st.floats(-1e30, 1e30, allow_subnormal=False)
histories = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(finite, min_size=n, max_size=n), min_size=1, max_size=12)
)


@pytest.mark.parametrize("rule", RULES)
@given(history=histories)
def test_any_finite_history_gives_finite_normalised_weights(rule, history):
    table = torch.tensor(history, dtype=torch.float32)
    fusion = DynamicMemoryFusion(table.shape[1], weighting=rule, memory_size=8, min_history=1)
    for values in table:
        total = fusion(values)
        assert total.isfinite() or (values.abs() > 1e29).any()
        assert fusion.weights.isfinite().all()
        assert (fusion.weights >= 0).all()
        assert fusion.weights.sum().item() == pytest.approx(1, abs=1e-5)


ODD = [
    0.0,
    -0.0,
    1.0,
    1e30,
    -1e30,
    1e-30,
    1e-42,
    -1e-42,
    3e38,
    -3e38,
    torch.inf,
    -torch.inf,
    torch.nan,
]


def odd_history(seed: int, n: int | None = None) -> torch.Tensor:
    """One to nine steps of one to four terms: constant, smooth, mixed sign, tiny, huge, not finite."""
    rng = np.random.default_rng(seed)
    steps, n = rng.integers(1, 10), n or rng.integers(1, 5)
    values = rng.normal(size=(steps, n)) * 10.0 ** rng.integers(-30, 31, size=n)
    if rng.random() < 0.3:
        values = np.repeat(values[:1], steps, axis=0)
    if rng.random() < 0.3:
        values = np.abs(values)
    odd = rng.random((steps, n)) < rng.choice([0, 0.05, 0.5])
    return torch.tensor(np.where(odd, rng.choice(ODD, size=(steps, n)), values)).float()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_odd_histories_give_finite_normalised_weights(rule, seed):
    history = odd_history(seed)
    n = history.shape[1]
    fusion = DynamicMemoryFusion(n, weighting=rule, memory_size=9, min_history=1)
    with torch.no_grad():
        feed(fusion, history)
    weights = fusion.weights
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert abs(weights.sum().item() - 1) < 1e-5
    assert fusion.step + fusion.skipped == len(history)
    state = fusion.state_dict_dmf()  # a log posterior may be -inf, which is a weight of zero
    assert not any(value.isnan().any() for value in state.values() if torch.is_tensor(value))
    assert state["history"].isfinite().all()


class LastStep(nn.Module):
    """One step from a memory that is given, and what it leaves: weights, step, skipped, history."""

    def __init__(self, fusion: DynamicMemoryFusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, values):
        self.fusion(values)
        return self.fusion.weights, self.fusion.step, self.fusion.skipped, self.fusion._history


@functools.cache
def memories(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """2500 odd histories of ``n`` terms: the memory before the last step, its step, and that step."""
    rows, last, steps = [], [], []
    for seed in range(2500):
        history = odd_history(seed, n)
        kept = history[:-1][history[:-1].isfinite().all(dim=1)]
        rows.append(torch.cat((torch.zeros(9 - len(kept), n), kept)))
        last.append(history[-1])
        steps.append(len(kept))
    return torch.stack(rows), torch.tensor(steps), torch.stack(last)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ten_thousand_odd_histories_at_once(rule, n):
    history, steps, last = memories(n)
    module = LastStep(
        DynamicMemoryFusion(n, weighting=rule, memory_size=9, min_history=1, persistent=True)
    )
    state = module.state_dict()
    given = {"fusion._history": history, "fusion._step": steps}

    def step(memory, values):
        return torch.func.functional_call(module, {**state, **memory}, values)

    with torch.no_grad():
        weights, step_count, skipped, after = torch.vmap(step)(given, last)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2500), atol=1e-5, rtol=0)
    assert torch.equal(step_count + skipped, steps + 1)
    assert after.isfinite().all()


@pytest.mark.parametrize("rule", STATISTICAL)
@given(order=st.permutations(range(20)))
def test_score_does_not_depend_on_the_order_of_the_memory(rule, order):
    history = decreasing(20)
    fusion = DynamicMemoryFusion(3, weighting=rule)

    def score(rows):
        return fusion.rule(Window(rows, torch.ones(20, 1, dtype=torch.bool), torch.tensor(20)))

    torch.testing.assert_close(score(history[list(order)]), score(history), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", STATISTICAL)
@given(
    term=st.integers(0, 2),
    factor=st.floats(1.0, 50.0),
    power=st.floats(0.2, 3.0),
)
def test_eq_9_takes_out_the_scale_of_a_symlogged_term(rule, term, factor, power):
    """Eq. 9 promises invariance to ``symlog(h) -> a symlog(h) + b``: ``h -> k (1 + h)^a - 1``."""
    other = decreasing(20)
    other[:, term] = factor * (1 + other[:, term]) ** power - 1
    torch.testing.assert_close(weights_of_20(rule, other), plain_weights(rule), atol=2e-4, rtol=0)


def weights_of_20(rule: str, history: torch.Tensor) -> torch.Tensor:
    return feed(DynamicMemoryFusion(3, weighting=rule, memory_size=20, min_history=20), history)


@functools.cache
def plain_weights(rule: str) -> torch.Tensor:
    return weights_of_20(rule, decreasing(20))


def test_plain_rescaling_is_not_promised_because_eq_10_comes_first():
    history = decreasing(40)
    options = dict(weighting="variance", memory_size=40, min_history=40)
    before = feed(DynamicMemoryFusion(3, **options), history)
    after = feed(DynamicMemoryFusion(3, **options), history * torch.tensor([100.0, 1, 1]))
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_weights_stay_initial_until_min_history(rule):
    initial = [0.5, 0.3, 0.2]
    fusion = DynamicMemoryFusion(
        3, weighting=rule, memory_size=20, min_history=10, initial_weights=[5, 3, 2]
    )
    history = decreasing(12)
    torch.testing.assert_close(feed(fusion, history[:9]), torch.tensor(initial))
    feed(fusion, history[9:])
    assert (fusion.weights.allclose(torch.tensor(initial))) == (rule not in ADAPTIVE)


@pytest.mark.parametrize("rule", STATISTICAL)
def test_constant_histories_keep_the_last_valid_weights(rule):
    fusion = DynamicMemoryFusion(3, weighting=rule, memory_size=10, min_history=5)
    before = feed(fusion, decreasing(10))
    feed(fusion, torch.tensor([[1.0, 2.0, 3.0]]).repeat(9, 1))
    valid = fusion.weights  # one moving value is left in the memory
    after = feed(fusion, torch.tensor([[1.0, 2.0, 3.0]]).repeat(10, 1))
    torch.testing.assert_close(after, valid)
    assert not before.allclose(torch.full((3,), 1 / 3))


def test_current_values_count_and_the_oldest_leave():
    fusion = DynamicMemoryFusion(2, weighting="variance", memory_size=3, min_history=3)
    history = torch.tensor([[9.0, 1.0], [1.0, 1.0], [1.2, 4.0], [1.1, 2.0]])
    oracle = Oracle("variance", 2, 3, 3)
    for values in history:
        fusion(values)
        np.testing.assert_allclose(
            fusion.weights.numpy(), oracle.step(values.double().numpy()), atol=1e-5
        )


def test_total_uses_raw_losses_and_gamma_before_the_counter_moves():
    fusion = DynamicMemoryFusion(2, weighting="fixed", initial_weights=[3, 1], decay_interval=2)
    losses, auxiliary = torch.tensor([2.0, 4.0]), torch.tensor(0.5)
    expected = [5.0, 5.0, 5 * np.exp(-0.05), 5 * np.exp(-0.05), 5 * np.exp(-0.1)]
    for gamma in expected:
        assert fusion.gamma.item() == pytest.approx(gamma, rel=1e-6)
        assert fusion(losses, auxiliary).item() == pytest.approx(2.5 + gamma * 0.5, rel=1e-6)
    assert fusion.step == 5


def test_gamma_decays_without_an_auxiliary_loss():
    fusion = DynamicMemoryFusion(2, decay_interval=1)
    feed(fusion, torch.ones(7, 2))
    assert fusion.gamma.item() == pytest.approx(5 * np.exp(-0.35), rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_eval_records_nothing(rule):
    fusion = DynamicMemoryFusion(3, weighting=rule, memory_size=9, min_history=3, decay_interval=1)
    feed(fusion, decreasing(8))
    before = fusion.state_dict_dmf()
    fusion.eval()
    feed(fusion, decreasing(20, seed=1))
    after = fusion.state_dict_dmf()
    assert all(
        torch.equal(before[k], after[k]) for k in before if isinstance(before[k], torch.Tensor)
    )


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in LEARNED])
def test_no_gradient_flows_through_the_weights(rule):
    fusion = DynamicMemoryFusion(3, weighting=rule, memory_size=10, min_history=2)
    feed(fusion, decreasing(9))
    losses = torch.tensor([0.4, 0.8, 0.6], requires_grad=True)
    fusion(losses).backward()
    torch.testing.assert_close(losses.grad, fusion.weights)
    assert not fusion.weights.requires_grad


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_is_not_finite_is_returned_but_not_recorded(rule, bad):
    fusion = DynamicMemoryFusion(3, weighting=rule, memory_size=10, min_history=2)
    history = decreasing(20)
    feed(fusion, history[:10])
    weights = fusion.weights
    total = fusion(torch.tensor([bad, 0.5, 0.5]))
    assert not total.isfinite()
    assert torch.equal(fusion.weights, weights)
    assert (fusion.step, fusion.skipped) == (10, 1)

    clean = DynamicMemoryFusion(3, weighting=rule, memory_size=10, min_history=2)
    assert torch.equal(feed(fusion, history[10:]), feed(clean, history))


def test_record_false_leaves_the_memory_alone_and_is_not_counted_as_broken():
    fusion = DynamicMemoryFusion(2, memory_size=5, min_history=2)
    fusion(torch.tensor([1.0, 2.0]), record=torch.tensor(False))
    assert (fusion.step, fusion.skipped) == (0, 0)


def test_a_saturated_posterior_does_not_turn_an_infinite_term_into_nan():
    fusion = DynamicMemoryFusion(2, weighting="fixed", initial_weights=[0, 1])
    assert fusion(torch.tensor([torch.inf, 1.0])).item() == 1.0


def test_bayesian_forgets():
    history = decreasing(400)

    def at(forgetting):
        rule = {"type": "bayesian", "forgetting": forgetting}
        fusion = DynamicMemoryFusion(3, weighting=rule, memory_size=50, min_history=20)
        return feed(fusion, history)

    paper = DynamicMemoryFusion(3, weighting="bayesian", memory_size=50, min_history=20)
    assert torch.equal(at(1.0), feed(paper, history))
    assert at(1.0).max() > 0.99
    assert at(0.9).max() < 0.99
    # the oracle's recursion with the power on its prior
    oracle = Oracle("bayesian", 3, 50, 20)
    for values in history:
        oracle.log_prior = oracle.log_prior * 0.9
        expected = oracle.step(values.double().numpy())
    np.testing.assert_allclose(at(0.9).numpy(), expected, atol=5e-5)
    with pytest.raises(ValueError, match="forgetting"):
        at(0)


@pytest.mark.parametrize("planned", [100, 1000])
def test_decay_end_is_a_share_of_the_planned_training(planned):
    fusion = DynamicMemoryFusion(2, weighting="fixed", gamma0=4.0, decay_end=0.5)
    with pytest.raises(RuntimeError, match="plan"):
        fusion(torch.ones(2), torch.tensor(1.0))
    fusion.decay.plan(planned)
    for _ in range(planned // 2):
        fusion(torch.ones(2))
    assert fusion.gamma.item() == pytest.approx(0.04, rel=1e-3)
    assert fusion.settings["decay_end"] == 0.5
    assert "decay_rate" not in fusion.settings
    with pytest.raises(ValueError, match="decay_end"):
        DMFConfig(decay_end=0.0)
    with pytest.raises(ValueError, match="steps"):
        fusion.decay.plan(0)


def test_bayesian_saturates_and_min_weight_keeps_terms_alive():
    history = decreasing(600)
    free = DynamicMemoryFusion(3, weighting="bayesian", memory_size=50, min_history=20)
    bounded = DynamicMemoryFusion(
        3, weighting="bayesian", memory_size=50, min_history=20, min_weight=0.1
    )
    assert feed(free, history).max() > 0.999
    assert feed(bounded, history).min() >= 0.1 - 1e-6


@pytest.mark.parametrize("rule", ADAPTIVE)
@given(bound=st.floats(0, 0.33), ema=st.none() | st.floats(0, 0.99))
def test_bound_and_smoothing_keep_the_weights_a_distribution(rule, bound, ema):
    fusion = DynamicMemoryFusion(
        3, weighting=rule, memory_size=10, min_history=2, min_weight=bound, weight_ema=ema
    )
    feed(fusion, decreasing(15))
    assert fusion.weights.min() >= bound - 1e-5
    assert fusion.weights.sum().item() == pytest.approx(1, abs=1e-5)


def test_weight_ema_is_the_stated_recursion():
    history = decreasing(30)
    raw = DynamicMemoryFusion(3, memory_size=10, min_history=2)
    smooth = DynamicMemoryFusion(3, memory_size=10, min_history=2, weight_ema=0.9)
    expected = smooth.weights
    for i, values in enumerate(history):
        raw(values)
        smooth(values)
        if i >= 1:
            expected = 0.9 * expected + 0.1 * raw.weights
        torch.testing.assert_close(smooth.weights, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in LEARNED])
def test_resume_is_bit_exact(rule, tmp_path):
    options = dict(weighting=rule, memory_size=12, min_history=4, decay_interval=3, weight_ema=0.5)
    history = decreasing(50)
    whole, first = DynamicMemoryFusion(3, **options), DynamicMemoryFusion(3, **options)
    feed(whole, history)
    feed(first, history[:23])
    torch.save(first.state_dict_dmf(), tmp_path / "state.pth")
    second = DynamicMemoryFusion(3, **options)
    second.load_state_dict_dmf(torch.load(tmp_path / "state.pth", weights_only=True))
    assert torch.equal(feed(second, history[23:]), whole.weights)
    assert torch.equal(second.gamma, whole.gamma)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            second.state_dict_dmf().values(), whole.state_dict_dmf().values(), strict=True
        )
        if isinstance(a, torch.Tensor)
    )


def test_state_is_not_in_the_ordinary_state_dict():
    assert DynamicMemoryFusion(3, weighting="bayesian").state_dict() == {}


CHANGES = dict(
    weighting="mad", memory_size=140, min_history=40, gamma0=50.0, decay_rate=0.1, decay_interval=7,
    min_weight=0.1, weight_ema=0.5, initial_weights=[1, 2, 1], prior=[1, 2, 1],
)  # fmt: skip


@pytest.mark.parametrize("setting", CHANGES)
def test_every_other_setting_is_refused_by_name_and_taken_on_purpose(setting):
    saved = DynamicMemoryFusion(3)
    feed(saved, decreasing(60))
    fusion = DynamicMemoryFusion(3, **{setting: CHANGES[setting]})
    before = fusion.state_dict_dmf()
    with pytest.raises(SettingsDiffer, match=f"{setting}=.* in the saved run, .* now") as error:
        fusion.load_state_dict_dmf(saved.state_dict_dmf())
    assert str(error.value).count("in the saved run") == 1
    assert torch.equal(fusion.weights, before["weights"])
    fusion.load_state_dict_dmf(saved.state_dict_dmf(), resume="new")
    assert fusion.step == 60
    assert torch.equal(fusion.weights, saved.weights)
    after = feed(fusion, decreasing(3, seed=1))
    assert after.isfinite().all()


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a", "c")])
@pytest.mark.parametrize("resume", ["same", "new"])
def test_a_state_of_other_terms_is_refused_and_changes_nothing(names, resume):
    state = DynamicMemoryFusion(names).state_dict_dmf()
    fusion = DynamicMemoryFusion(("a", "b", "c"))
    feed(fusion, decreasing(60))
    before = fusion.weights
    with pytest.raises(ValueError, match="names"):
        fusion.load_state_dict_dmf(state, resume=resume)
    assert torch.equal(fusion.weights, before)


def test_a_memory_may_shrink_and_grow_as_long_as_nothing_is_missing():
    history = decreasing(40)
    options = dict(min_history=5, weighting="mad")
    saved = DynamicMemoryFusion(3, memory_size=20, **options)
    feed(saved, history[:15])
    for size in (10, 30):
        fusion = DynamicMemoryFusion(3, memory_size=size, **options)
        fusion.load_state_dict_dmf(saved.state_dict_dmf(), resume="new")
        whole = DynamicMemoryFusion(3, memory_size=size, **options)
        assert torch.equal(feed(fusion, history[15:]), feed(whole, history))
    feed(saved, history[15:])
    with pytest.raises(ValueError, match="cannot grow"):
        DynamicMemoryFusion(3, memory_size=30, **options).load_state_dict_dmf(
            saved.state_dict_dmf(), resume="new"
        )


@pytest.mark.parametrize("rule", ["variance", "bayesian"])
def test_a_state_of_the_first_version_still_loads(rule):
    fusion = DynamicMemoryFusion(3, weighting=rule, memory_size=20, min_history=5)
    feed(fusion, decreasing(30))
    state = fusion.state_dict_dmf()
    prior = state.get("log_prior", fusion.weights.log())
    first = {k: v for k, v in state.items() if k != "settings"}
    first |= {"version": 1, "weighting": rule, "log_prior": prior}
    again = DynamicMemoryFusion(3, weighting={"type": rule}, memory_size=20, min_history=5)
    again.load_state_dict_dmf(first)
    more = decreasing(10, seed=2)
    assert torch.equal(feed(again, more), feed(fusion, more))
    with pytest.raises(SettingsDiffer, match="memory_size=20"):
        DynamicMemoryFusion(3, weighting=rule).load_state_dict_dmf(first)


def test_calls_of_one_step_are_one_record_of_their_mean():
    history = decreasing(30)
    options = dict(weighting="bayesian", memory_size=12, min_history=3, decay_interval=1)
    one, several = DynamicMemoryFusion(3, **options), DynamicMemoryFusion(3, **options)
    for values in history:
        gamma = several.gamma
        several(2 * values, 1.0)
        assert several.fuse(0 * values, amend=True)[2] == gamma
        several(values, amend=True)
        one(values)
        assert torch.equal(several.gamma, one.gamma)
        torch.testing.assert_close(several.weights, one.weights)
    assert several.step == one.step == 30
    torch.testing.assert_close(several.state_dict_dmf()["history"], one.state_dict_dmf()["history"])


def test_calls_of_a_step_that_are_not_finite_leave_its_mean_alone():
    fusion = DynamicMemoryFusion(2, memory_size=4, min_history=2)
    fusion(torch.tensor([torch.nan, 1.0]))
    assert (fusion.step, fusion.skipped) == (0, 1)
    fusion(torch.tensor([1.0, 3.0]), amend=True)
    fusion(torch.tensor([torch.inf, 1.0]), amend=True)
    fusion(torch.tensor([3.0, 5.0]), amend=True)
    assert (fusion.step, fusion.skipped) == (1, 1)
    assert torch.equal(fusion.state_dict_dmf()["history"][-1], torch.tensor([2.0, 4.0]))
    with pytest.raises(RuntimeError, match="no call has begun"):
        DynamicMemoryFusion(2)(torch.ones(2), amend=True)


@pytest.mark.parametrize("rule", RULES)
def test_persistent_state_travels_in_the_state_dict(rule):
    options = dict(weighting=rule, memory_size=12, min_history=4, persistent=True)
    history = decreasing(30)
    whole, second = DynamicMemoryFusion(3, **options), DynamicMemoryFusion(3, **options)
    feed(whole, history[:20])
    second.load_state_dict(whole.state_dict())
    assert torch.equal(feed(second, history[20:]), feed(whole, history[20:]))
    assert second.step == 30


def test_a_damaged_state_is_refused():
    fusion = DynamicMemoryFusion(2)
    good = fusion.state_dict_dmf()
    for damage, message in [
        ({"version": 99}, "version"),
        ({"weights": torch.full((2,), torch.nan)}, "NaN"),
        ({"history": None}, "lacks 'history'"),
        ({"step": None}, "lacks 'step'"),
        ({"step": torch.tensor(-5)}, "negative number in step"),
        ({"history": torch.full((150, 2), torch.inf)}, "history that are not finite"),
        ({"history": torch.tensor(1.0)}, "history of shape"),
        ({"weights": torch.tensor([-1.0, 2.0])}, "negative number in weights"),
        ({"weights": torch.tensor([3.0, 9.0])}, "sum to 1"),
        ({"skipped": torch.tensor(-1)}, "negative number in skipped"),
    ]:
        for resume in ("same", "new"):
            with pytest.raises(ValueError, match=message):
                fusion.load_state_dict_dmf({**good, **damage}, resume)
    for first in ({"version": 1, "weighting": "gone"}, {"version": 1}):
        with pytest.raises(ValueError, match="no rule that is known here"):
            fusion.load_state_dict_dmf({**good, **first})
    fusion.load_state_dict_dmf(good)
    with pytest.raises(ValueError, match="not a DMF state"):
        fusion.load_state_dict_dmf([1, 2])


def test_reset_forgets_everything():
    fusion = DynamicMemoryFusion(3, memory_size=10, min_history=2)
    fresh = fusion.state_dict_dmf()
    feed(fusion, decreasing(15))
    fusion.reset()
    assert all(
        torch.equal(a, b)
        for a, b in zip(fresh.values(), fusion.state_dict_dmf().values(), strict=True)
        if isinstance(a, torch.Tensor)
    )


def reset(fusion, other):
    fusion.reset()


def load(fusion, other):
    fusion.load_state_dict_dmf(other.state_dict_dmf())


def load_as_a_module(fusion, other):
    fusion.load_state_dict(other.state_dict())


@pytest.mark.parametrize("replace", [reset, load, load_as_a_module])
def test_another_memory_ends_the_step_and_changes_nothing_that_is_held(replace):
    options = dict(weighting="bayesian", memory_size=5, min_history=2, persistent=True)
    fusion, other = DynamicMemoryFusion(3, **options), DynamicMemoryFusion(3, **options)
    feed(fusion, decreasing(4))
    feed(other, decreasing(9, seed=1))
    _, held, _ = fusion.fuse(torch.rand(3))
    before = held.clone()
    replace(fusion, other)
    assert torch.equal(held, before)
    step = fusion.step
    with pytest.raises(RuntimeError, match="no call has begun"):  # it would bring the memory back
        fusion(torch.rand(3), amend=True)
    assert fusion.step == step
    fusion(torch.rand(3))
    fusion(torch.rand(3), amend=True)
    assert fusion.step == step + 1


def test_a_state_loaded_in_inference_mode_trains_on():
    fusion = DynamicMemoryFusion(2)
    with torch.inference_mode():
        load(fusion, DynamicMemoryFusion(2))
    values = torch.rand(2, requires_grad=True)
    fusion(values).backward()
    assert values.grad is not None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("convert", [torch.nn.Module.double, torch.nn.Module.half])
def test_a_network_in_another_precision_leaves_the_memory_in_its_own(rule, convert):
    options = dict(weighting=rule, memory_size=5, min_history=2)
    plain, converted = DynamicMemoryFusion(3, **options), DynamicMemoryFusion(3, **options)
    convert(torch.nn.Sequential(converted))
    history = decreasing(8)
    assert torch.equal(feed(converted, history), feed(plain, history))
    load(plain, converted)
    assert converted.to("meta").weights.device.type == "meta"


def test_losses_may_be_named_in_any_order():
    fusion = DynamicMemoryFusion(("ce", "dice"), weighting="fixed", initial_weights=[1, 3])
    total = fusion({"dice": torch.tensor(4.0), "ce": torch.tensor(8.0)})
    assert total.item() == 5.0
    assert fusion({"dice": 4.0, "ce": 8.0}, 1.0).item() == 10.0
    with pytest.raises(ValueError, match=r"\['ce', 'dice'\]"):
        fusion({"ce": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="shape"):
        fusion(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_losses_are_weighed_in_float32(dtype):
    history = decreasing(30).to(dtype)
    half = DynamicMemoryFusion(3, memory_size=10, min_history=2)
    full = DynamicMemoryFusion(3, memory_size=10, min_history=2)
    for values in history:
        assert half(values).dtype == torch.float32
        full(values.float())
    assert torch.equal(half.weights, full.weights)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in LEARNED])
def test_the_step_compiles_without_a_graph_break(rule):
    options = dict(weighting=rule, memory_size=6, min_history=2, min_weight=0.05, weight_ema=0.5)
    torch._dynamo.reset()  # it counts the instances compiled in one process
    plain, other = DynamicMemoryFusion(3, **options), DynamicMemoryFusion(3, **options)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for values in decreasing(12):
        torch.testing.assert_close(
            compiled(values, values.mean()), plain(values, values.mean()), atol=1e-6, rtol=1e-6
        )
    torch.testing.assert_close(other.weights, plain.weights, atol=1e-6, rtol=0)
    assert other.step == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(min_history=200), "min_history .200. exceeds memory_size .150."),
        (dict(memory_size=0), "memory_size"),
        (dict(memory_size=2.5), "memory_size"),
        (dict(decay_interval=0), "decay_interval"),
        (dict(gamma0=-1), "gamma0"),
        (dict(decay_rate=float("nan")), "decay_rate"),
        (dict(initial_weights=[1, 2]), "initial_weights needs 3"),
        (dict(initial_weights=[1, -1, 1]), "initial_weights"),
        (dict(initial_weights=[0, 0, 0]), "initial_weights"),
        (dict(prior=[1, 0, 1]), "prior must be positive"),
        (dict(min_weight=0.5), "min_weight"),
        (dict(min_weight=0.2, initial_weights=[0.1, 0.5, 0.4]), "fall below"),
        (dict(weight_ema=1.0), "weight_ema"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicMemoryFusion(3, **options)


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(KeyError, match="did you mean 'variance'"):
        DynamicMemoryFusion(3, weighting="varience")
    with pytest.raises(TypeError, match="did you mean 'memory_size'"):
        DMFConfig.from_dict({"memory_sise": 3})
    with pytest.raises(ValueError, match="differ"):
        DynamicMemoryFusion(("a", "a"))


def test_repr_tells_the_settings():
    text = repr(DynamicMemoryFusion(("ce", "dice"), weighting="mad", min_weight=0.1))
    assert all(part in text for part in ("'ce', 'dice'", "'mad'", "memory_size=150", "0.1"))


def test_states_survive_a_buffer_of_bytes():
    fusion = DynamicMemoryFusion(2)
    buffer = io.BytesIO()
    torch.save(fusion.state_dict_dmf(), buffer)
    buffer.seek(0)
    fusion.load_state_dict_dmf(torch.load(buffer, weights_only=True))
