"""The composed loss: terms shared, fused, recorded, compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmf_plugins import LOSSES, WEIGHTINGS, DMFConfig, DMFLoss

from .test_losses import batch


def test_total_is_the_weighted_sum_of_the_single_losses():
    logits, target = batch()
    names = ("ce", "iou", "dice", "tversky", "focal")
    loss = DMFLoss(names, auxiliary="cb_dice", initial_weights=[1, 2, 3, 4, 5])
    single = torch.stack([LOSSES[name]()(logits, target) for name in names])
    expected = (loss.weights * single).sum() + 5 * LOSSES["cb_dice"]()(logits, target)
    torch.testing.assert_close(loss(logits, target), expected)
    torch.testing.assert_close(loss.last["terms"], single)
    assert loss.last["gamma"] == 5
    assert not any(v.requires_grad for v in loss.last.values())


def test_every_term_trains_the_network():
    """The point of soft counts: with argmax counts all but cross-entropy have no gradient."""
    for name in LOSSES:
        logits, target = batch()
        logits.requires_grad_()
        DMFLoss((name,), auxiliary=None)(logits, target).backward()
        assert logits.grad.abs().max() > 1e-6, name


def test_the_auxiliary_loss_changes_the_gradient():
    gradients = []
    for auxiliary in (None, "cb_dice"):
        logits, target = batch()
        logits.requires_grad_()
        DMFLoss(auxiliary=auxiliary)(logits, target).backward()
        gradients.append(logits.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4


def test_weights_move_in_training_and_rest_in_eval():
    loss = DMFLoss(memory_size=10, min_history=3)
    for seed in range(5):
        loss(*batch(seed=seed))
    moved = loss.weights
    assert not moved.allclose(torch.full((3,), 1 / 3))
    loss.eval()
    loss(*batch(seed=9))
    assert torch.equal(loss.weights, moved)
    assert loss.fusion.step == 5


def test_an_all_ignored_batch_is_not_recorded():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = DMFLoss(ignore_index=255)
    total = loss(logits, torch.full((2, 4, 4), 255))
    assert total.item() == 0
    total.backward()
    assert (loss.fusion.step, loss.fusion.skipped) == (0, 0)


def test_terms_may_be_dicts_modules_and_functions():
    logits, target = batch()

    class Edge(nn.Module):
        def forward(self, logits, target):
            return logits.square().mean()

    def smoothness(logits, target):
        return logits.diff(dim=-1).abs().mean()

    loss = DMFLoss(
        [
            {"type": "tversky", "alpha": 0.3, "beta": 0.7},
            {"type": "tversky"},
            {"type": "dice", "include_background": False},
            Edge(),
            smoothness,
        ],
        auxiliary={"type": "focal", "gamma": 1.0},
    )
    assert loss.names == ("tversky", "tversky_2", "dice", "Edge", "smoothness")
    loss(logits, target)
    values = dict(zip(loss.names, loss.last["terms"], strict=True))
    torch.testing.assert_close(
        values["dice"], LOSSES["dice"](include_background=False)(logits, target)
    )
    torch.testing.assert_close(values["Edge"], logits.square().mean())
    assert values["tversky"] != values["tversky_2"]


def test_shared_options_reach_the_region_terms_and_a_dict_overrides_them():
    loss = DMFLoss(["ce", "dice", {"type": "iou", "smooth": 1.0}], smooth=0.5, batch_dice=False)
    _, dice, iou = loss.losses
    assert (dice.smooth, dice.batch_dice) == (0.5, False)
    assert (iou.smooth, iou.batch_dice) == (1.0, False)


@pytest.mark.parametrize(
    ("rule", "ignore_index"), [("variance", None), *((rule, 255) for rule in sorted(WEIGHTINGS))]
)
def test_the_whole_step_compiles_without_a_graph_break(rule, ignore_index):
    options = dict(
        losses=("ce", "iou", "dice", "focal"),
        weighting=rule,
        memory_size=6,
        min_history=2,
        ignore_index=ignore_index,
    )
    torch._dynamo.reset()  # it counts the instances compiled in one process
    plain, other = DMFLoss(**options), DMFLoss(**options)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for seed in range(6):
        logits, target = batch(seed=seed)
        torch.testing.assert_close(compiled(logits, target), plain(logits, target))
    torch.testing.assert_close(other.weights, plain.weights, atol=1e-5, rtol=0)


def test_config_round_trip():
    config = DMFConfig.from_dict(
        {
            "losses": ["ce", "dice"],
            "auxiliary": None,
            "weighting": "mad",
            "memory_size": 40,
            "min_history": 10,
        }
    )
    loss = DMFLoss.from_config(config, ignore_index=3)
    assert loss.fusion.config.memory_size == 40
    assert (loss.names, loss.auxiliary, loss.ignore_index) == (("ce", "dice"), None, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(losses=[]), ValueError, "non-empty"),
        (dict(losses="ce"), ValueError, "list of terms"),
        (dict(losses=["cee"]), KeyError, "did you mean 'ce'"),
        (dict(auxiliary="cbdice"), KeyError, "did you mean 'cb_dice'"),
        (dict(losses=[{"alpha": 1}]), TypeError, "needs a 'type'"),
        (dict(losses=[{"type": "dice", "alpha": 1}]), TypeError, "loss 'dice'.*alpha"),
        (dict(memory=3), TypeError, "unknown DMF option 'memory'"),
    ],
)
def test_wrong_terms_are_named(options, error, message):
    with pytest.raises(error, match=message):
        DMFLoss(**options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_total_is_float32(dtype):
    logits, target = batch()
    conv = nn.Conv2d(3, 3, 1)
    with torch.autocast("cpu", dtype=dtype):
        total = DMFLoss()(conv(logits), target)
    assert total.dtype == torch.float32
    total.backward()
    assert conv.weight.grad.isfinite().all()
