"""The composed loss: terms shared, fused, recorded, compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmf_plugins import LOSSES, WEIGHTINGS, DMFConfig, DMFLoss
from dmf_plugins.core import SettingsDiffer
from dmf_plugins.core.weighting.softadapt import SoftAdapt
from dmf_plugins.losses import DiceLoss, SegmentationLoss

from .support.samples import batch


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


@pytest.mark.slow
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
        (dict(losses="ce"), ValueError, r"such as \['ce', 'dice'\]"),
        (dict(losses={"ce": 1}), ValueError, "list of terms"),
        (dict(losses=3), ValueError, "list of terms"),
        (dict(losses=["ce", 3]), TypeError, "a loss is a name.* got 3"),
        (dict(losses=["ce", DiceLoss]), TypeError, r"DiceLoss\(...\)"),
        (dict(losses=[{"type": DiceLoss}]), TypeError, "'type' that is a name"),
        (dict(auxiliary=""), TypeError, "for none at all write None"),
        (dict(weighting=None), TypeError, "a weighting is a name.* got None"),
        (dict(weighting=3), TypeError, "a weighting is a name.* got 3"),
        (dict(weighting={"type": dict}), TypeError, "'type' that is a name"),
        (dict(gamma0="5"), TypeError, "gamma0 must be a number"),
        (dict(losses=[{"type": "dice", "ignore_index": 2}]), TypeError, "ignore_index is one for"),
        (dict(auxiliary={"type": "dice", "mode": "sigmoid"}), TypeError, "mode is one for all"),
        (dict(losses=["ce", DMFLoss()]), TypeError, "cannot be a term of another"),
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


def test_specs_are_stored_in_their_plainest_form():
    loss = DMFLoss([{"type": "ce"}], None, {"type": "fixed"}, min_weight=0.1, initial_weights=[1])
    assert loss.fusion.config.weighting == "fixed"
    assert loss.fusion.config.losses == ("ce",)
    assert loss.fusion.config.auxiliary is None
    assert loss.settings["auxiliary"] is None
    saved = DMFLoss(weighting="mad").state_dict_dmf()
    DMFLoss(weighting={"type": "mad"}).load_state_dict_dmf(saved)


def test_the_rule_is_built_once_per_loss(monkeypatch):
    built = []
    original = SoftAdapt.__init__
    monkeypatch.setattr(
        SoftAdapt, "__init__", lambda self, *a, **k: built.append(1) or original(self, *a, **k)
    )
    DMFLoss(weighting="softadapt")
    assert len(built) == 1


TERM_CHANGES = dict(
    losses=["ce", "iou", "tversky"], auxiliary={"type": "cb_dice", "ratios": "image"},
    include_background=False, batch_dice=False, smooth=1.0,
)  # fmt: skip


@pytest.mark.parametrize("setting", TERM_CHANGES)
def test_other_settings_of_the_terms_are_refused_by_name(setting):
    saved = DMFLoss(losses=["ce", "iou", sum_of_squares])
    saved.load_state_dict_dmf(saved.state_dict_dmf())
    other = {"losses": ["ce", "iou", sum_of_squares], setting: TERM_CHANGES[setting]}
    if setting == "losses":
        with pytest.raises(ValueError, match=r"losses.2='sum_of_squares' in .*, 'tversky' now"):
            DMFLoss(**other).load_state_dict_dmf(saved.state_dict_dmf())
        return
    loss = DMFLoss(**other)
    with pytest.raises(SettingsDiffer, match="in the saved run"):
        loss.load_state_dict_dmf(saved.state_dict_dmf())
    loss.load_state_dict_dmf(saved.state_dict_dmf(), resume="new")


class Counting(SegmentationLoss):
    """What a user's own term may hold beside its options."""

    def __init__(self, power=1.0, **shared):
        super().__init__(**shared)
        self.exponent = power
        self.shape = lambda pixels: pixels**self.exponent
        self.calls, self.kept = 0, []
        self.register_buffer("steps", torch.zeros(1))

    def compute(self, statistics):
        self.calls += 1
        self.kept.append(self.calls)
        self.steps += 1
        self.seen = statistics.loglik.shape
        return self.shape(-statistics.loglik).mean()


def test_what_a_term_holds_beside_its_options_does_not_stand_in_the_way():
    def trained(steps, **options):
        loss = DMFLoss(losses=["ce", Counting(**options)], auxiliary=Counting())
        for _ in range(steps):
            loss(torch.randn(2, 2, 4, 4), torch.randint(0, 2, (2, 4, 4)))
        return loss

    saved = trained(3).state_dict_dmf()
    trained(1).load_state_dict_dmf(saved)
    with pytest.raises(SettingsDiffer, match=r"exponent=1\.0 in the saved run, 2\.0 now"):
        trained(1, power=2.0).load_state_dict_dmf(saved)


def sum_of_squares(logits, target):
    return logits.square().sum()


def test_one_line_describes_the_settings():
    text = DMFLoss(["ce", "dice"], "tversky", {"type": "softadapt", "beta": 0.3}).describe()
    for part in ("softadapt, beta=0.3", "ce, dice", "150 steps", "auxiliary tversky x 5 exp(-0.05"):
        assert part in text
    assert "no auxiliary" in DMFLoss(auxiliary=None).describe()
    assert DMFLoss(weighting="fixed").describe().startswith("fixed weights of ce, iou, dice; aux")


def test_the_row_of_several_calls_is_their_mean_and_the_sum_of_their_totals():
    torch.manual_seed(0)
    loss = DMFLoss(memory_size=5, min_history=2)
    batches = [(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))) for _ in range(3)]
    rows, totals = [], []
    for number, one in enumerate(batches):
        totals.append(loss(*one, amend=number > 0))
        rows.append(torch.stack(tuple(loss.terms(*one).values)))
    row = dict(zip(loss.columns, loss.last_row().tolist(), strict=True))
    mean = torch.stack(rows).mean(dim=0)
    assert row["value_iou"] == pytest.approx(mean[1].item())
    assert row["auxiliary"] == pytest.approx(mean[3].item())
    assert row["total"] == pytest.approx(sum(totals).item(), rel=1e-6)
    assert loss.fusion.step == 1
    loss(*batches[0])
    factors = torch.cat((loss.weights, loss.last["gamma"][None]))
    total = loss.terms(*batches[0]).values @ factors
    torch.testing.assert_close(loss.last["total"], total)
