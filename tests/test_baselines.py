"""The rules other people published: against their packages, their numbers, their recursions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torchjd.scalarization import DWA, UW

from dmf_plugins import DMFLoss, DynamicMemoryFusion
from dmf_plugins.core.weighting.softadapt import backward_difference

from .support.samples import decreasing, feed

# the example in the readme of the authors' SoftAdapt package, oldest value first
EXAMPLE = torch.tensor([[1, 2, 3, 4, 5], [150, 100, 50, 10, 0.1], [1500, 1000, 500, 100, 1]]).T
PUBLISHED = {
    "original": [9.9343336e-01, 6.5666283e-03, 3.8908041e-22],
    "loss_weighted": [8.79777193e-01, 1.20222814e-01, 7.12104538e-20],
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_softadapt_gives_the_numbers_of_its_authors(variant):
    # they take the slope at the oldest value: with time reversed it is minus ours at the newest
    rule = {"type": "softadapt", "variant": variant, "beta": -0.1}
    fusion = DynamicMemoryFusion(3, weighting=rule, memory_size=5, min_history=5)
    weights = feed(fusion, EXAMPLE.flip(0)).numpy()
    np.testing.assert_allclose(weights, PUBLISHED[variant], rtol=1e-3)


def test_softadapt_normalized_uses_only_the_proportions_of_the_slopes():
    history = decreasing(5)
    options = dict(
        weighting={"type": "softadapt", "variant": "normalized", "beta": 5.0},
        memory_size=5,
        min_history=5,
    )
    one = feed(DynamicMemoryFusion(3, **options), history)
    ten = feed(DynamicMemoryFusion(3, **options), 10 * history)
    torch.testing.assert_close(one, ten, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_random_weights_are_the_softmax_of_independent_normals():
    fusion = DynamicMemoryFusion(4, weighting="random", memory_size=1, min_history=1)
    drawn = torch.stack([feed(fusion, torch.ones(1, 4)) for _ in range(4000)])
    z = drawn.log()
    z = (z - z.mean(dim=1, keepdim=True)) * (
        4 / 3
    ) ** 0.5  # centred normals have 3/4 of the variance
    assert kstest(z[:, 0].numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]
    assert abs(correlation) < 0.05
    assert drawn.mean(dim=0).sub(0.25).abs().max() < 0.01


def test_random_weights_resume_alike_and_another_seed_draws_others():
    history = decreasing(40)
    options = dict(memory_size=10, min_history=3)
    whole = DynamicMemoryFusion(3, weighting="random", **options)
    feed(whole, history[:20])
    resumed = DynamicMemoryFusion(3, weighting="random", **options)
    resumed.load_state_dict_dmf(whole.state_dict_dmf())
    other = DynamicMemoryFusion(3, weighting={"type": "random", "seed": 1}, **options)
    assert torch.equal(feed(whole, history[20:]), feed(resumed, history[20:]))
    assert not torch.allclose(feed(other, history), whole.weights)


def test_geometric_weights_give_the_gradient_of_the_geometric_mean():
    x = torch.tensor([1.5, 0.3], requires_grad=True)
    terms = torch.stack((x.square().sum(), x[0].exp(), (x[1] + 2).square()))
    (expected,) = torch.autograd.grad(terms.log().mean().exp(), x, retain_graph=True)
    fusion = DynamicMemoryFusion(3, weighting="geometric", memory_size=1, min_history=1)
    (found,) = torch.autograd.grad(fusion(terms), x)
    torch.testing.assert_close(found / found.norm(), expected / expected.norm())


def test_geometric_is_the_inverse_of_the_mean_over_the_memory():
    history = decreasing(30)
    fusion = DynamicMemoryFusion(3, weighting="geometric", memory_size=8, min_history=8)
    expected = 1 / history[-8:].double().mean(dim=0)
    torch.testing.assert_close(feed(fusion, history), (expected / expected.sum()).float())


def test_softadapt_favours_the_term_that_falls_least():
    steps = torch.arange(50.0)
    history = torch.stack((2 - 0.03 * steps, 2 - 0.001 * steps), dim=1)
    fusion = DynamicMemoryFusion(2, weighting="softadapt", memory_size=50, min_history=50)
    assert feed(fusion, history)[1] > 0.5


@pytest.mark.parametrize("points", [2, 3, 5, 7])
def test_backward_difference_is_exact_for_polynomials(points):
    polynomial = np.polynomial.Polynomial(np.random.default_rng(0).normal(size=points))
    values = polynomial(-np.arange(points))
    assert np.dot(backward_difference(points), values) == pytest.approx(polynomial.deriv()(0))


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_dwa_is_torchjds_at_the_end_of_every_epoch(steps):
    fusion = DynamicMemoryFusion(3, weighting="dwa", memory_size=2 * steps, min_history=2 * steps)
    peer = DWA(temperature=2.0)
    for epoch in decreasing(6 * steps).split(steps):
        for values in epoch:
            fusion(values)
            peer(values)
        peer.step()
        theirs = peer._compute_weights(epoch[0]) / 3
        torch.testing.assert_close(fusion.weights, theirs)


def welford_cov(history: np.ndarray) -> np.ndarray:
    """Weights after the last step from the definition: ratios to the mean of all earlier steps."""
    ratios = np.ones_like(history)
    for t in range(1, len(history)):
        ratios[t] = history[t] / history[:t].mean(axis=0)
    c = ratios.std(axis=0) / ratios.mean(axis=0)
    return c / c.sum()


def test_cov_is_the_paper_over_the_whole_training_not_the_memory():
    history = decreasing(80)
    fusion = DynamicMemoryFusion(3, weighting="cov", memory_size=10, min_history=2)
    for t, values in enumerate(history, start=1):
        fusion(values)
        if t >= 2:
            expected = welford_cov(history[:t].double().numpy())
            np.testing.assert_allclose(fusion.weights.numpy(), expected, atol=1e-5)


def test_cov_survives_a_step_that_is_not_finite():
    fusion = DynamicMemoryFusion(2, weighting="cov", memory_size=10, min_history=2)
    history = decreasing(20, n=2)
    clean = feed(DynamicMemoryFusion(2, weighting="cov", memory_size=10, min_history=2), history)
    for t, values in enumerate(history):
        if t == 7:
            fusion(torch.tensor([torch.nan, 1.0]))
        fusion(values)
    assert torch.equal(fusion.weights, clean)


def test_uncertainty_is_torchjds_but_for_the_common_half_and_learns_alike():
    ours, theirs = DynamicMemoryFusion(3, weighting="uncertainty"), UW(3)
    optimizers = [torch.optim.SGD(m.parameters(), lr=lr) for m, lr in ((ours, 0.1), (theirs, 0.2))]
    for values in decreasing(30):
        totals = ours(values), theirs(values)
        torch.testing.assert_close(totals[0], 2 * totals[1])
        for optimizer, total in zip(optimizers, totals, strict=True):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    torch.testing.assert_close(ours.rule.log_variance, theirs.log_var)
    torch.testing.assert_close(ours.weights, (-theirs.log_var.detach()).softmax(0))
    assert not ours.weights.allclose(torch.full((3,), 1 / 3), atol=1e-3)


def test_uncertainty_state_travels_with_the_fusion():
    first, second = (DynamicMemoryFusion(2, weighting="uncertainty") for _ in range(2))
    with torch.no_grad():
        first.rule.log_variance.copy_(torch.tensor([0.3, -0.2]))
    second.load_state_dict_dmf(first.state_dict_dmf())
    assert torch.equal(second.rule.log_variance, first.rule.log_variance)
    second.reset()
    assert torch.equal(second.weights, torch.tensor([0.5, 0.5]))


def test_initial_weights_of_uncertainty_are_its_first_factors():
    fusion = DynamicMemoryFusion(2, weighting="uncertainty", initial_weights=[3, 1])
    torch.testing.assert_close(fusion.weights, torch.tensor([0.75, 0.25]))
    plain = DynamicMemoryFusion(2, weighting="uncertainty")
    assert plain(torch.tensor([2.0, 3.0])).item() == 5.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(weighting={"type": "softadapt", "variant": "x"}), ValueError, "variant"),
        (dict(weighting={"type": "softadapt", "points": 1}), ValueError, "points"),
        (dict(weighting="softadapt", memory_size=4, min_history=1), ValueError, "at least 5"),
        (dict(weighting="dwa", memory_size=1, min_history=1), ValueError, "at least 2"),
        (dict(weighting={"type": "softadapt", "betta": 1}), TypeError, "did you mean 'beta'"),
        (dict(weighting={"type": "mad", "beta": 1}), TypeError, "takes none"),
        (dict(weighting={"beta": 1}), TypeError, "'type'"),
        (dict(weighting="uncertainty", min_weight=0.1), ValueError, "learned"),
        (dict(weighting="uncertainty", initial_weights=[0, 1, 1]), ValueError, "positive"),
    ],
)
def test_wrong_options_of_a_rule_are_named(options, error, message):
    with pytest.raises(error, match=message):
        DynamicMemoryFusion(3, **options)


def test_options_of_a_rule_are_part_of_the_state():
    state = DMFLoss(weighting={"type": "dwa", "temperature": 1.0}).fusion.state_dict_dmf()
    DMFLoss(weighting={"type": "dwa", "temperature": 1.0}).fusion.load_state_dict_dmf(state)
    with pytest.raises(ValueError, match="temperature"):
        DMFLoss(weighting="dwa").fusion.load_state_dict_dmf(state)
