"""The fusion against numbers recorded from the authors' released code."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dmf_plugins import WEIGHTINGS, DynamicMemoryFusion
from dmf_plugins.core.scaling import EPS

from .conftest import shared


def reference_median(values: Tensor, valid: Tensor) -> Tensor:
    """The released code's median: it averages the two middle values only for an odd count."""
    ordered = torch.where(valid, values, torch.inf).sort(dim=0).values
    n = valid.sum()
    pair = ordered.index_select(0, torch.stack(((n // 2 - 1).clamp_min(0), n // 2)))
    return torch.where(n % 2 == 0, pair[1], pair.mean(dim=0))


def reference_mad(window) -> Tensor:
    scaled = window.scaled()
    deviation = (scaled - reference_median(scaled, window.valid)).abs()
    return -(reference_median(deviation, window.valid) + EPS).log()


@pytest.fixture
def reference_rules() -> Iterator[dict[str, str]]:
    """Register the released code's MAD and Bayesian as a user would register a rule."""
    WEIGHTINGS.register("test_mad")(reference_mad)
    WEIGHTINGS.register("test_bayes")(lambda w: w.log_prior + reference_mad(w))
    yield {"var": "variance", "mad": "test_mad", "bayes": "test_bayes"}
    WEIGHTINGS.unregister("test_mad")
    WEIGHTINGS.unregister("test_bayes")


@pytest.mark.slow
def test_weights_totals_and_gamma_match_the_released_code(reference_rules):
    golden = json.loads(shared("golden/reference_weights.json").read_text())
    tolerance = {"var": 2e-5, "mad": 5e-5, "bayes": 5e-5}
    compared = 0
    for run in golden["runs"]:
        values = torch.tensor(golden["sequences"][run["sequence"]][: run["n_steps"]])
        memory_size = run["history_size_max_effective"]
        min_history = run["history_size_effective"]
        options = dict(
            weighting=reference_rules[run["method"]],
            memory_size=memory_size,
            min_history=min_history,
            initial_weights=run["initial_loss_weights"],
            gamma0=run["gama"],
            decay_rate=run["decay_rate"],
            decay_interval=run["batch_track_steps"] or 1,
        )
        if min_history > memory_size:  # there it silently never adapts
            with pytest.raises(ValueError, match="would never adapt"):
                DynamicMemoryFusion(values.shape[1], **options)
            continue
        fusion = DynamicMemoryFusion(values.shape[1], **options)
        auxiliary = None if run["aux_value"] is None else torch.tensor(run["aux_value"])
        recorded = {t: i for i, t in enumerate(run["t"])}
        for t in range(run["n_steps"]):
            fusion.train(t not in run["eval_steps"])
            gamma = fusion.gamma
            total = fusion(values[t], auxiliary)
            if t not in recorded:
                continue
            i = recorded[t]
            torch.testing.assert_close(
                fusion.weights,
                torch.tensor([float(w) for w in run["weights"][i]]),
                atol=tolerance[run["method"]],
                rtol=0,
            )
            assert total.item() == pytest.approx(float(run["total"][i]), abs=1e-4)
            if auxiliary is not None:  # without one, its counter stands still; ours goes on
                assert gamma.item() == pytest.approx(run["aux_factor"][i], abs=1e-5)
            compared += 1
    assert compared > 2000
