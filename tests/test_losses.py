"""Every loss against torch, MONAI or plain NumPy, in every mode, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.losses import DiceLoss as MonaiDice
from monai.losses import FocalLoss as MonaiFocal
from monai.losses import TverskyLoss as MonaiTversky
from nnunetv2.training.loss.robust_ce_loss import TopKLoss
from torch.nn import functional

from dmf_plugins import LOSSES

from .support.samples import batch

ALL = sorted(LOSSES)
OVERLAP = ["cb_dice", "dice", "iou", "tversky"]
SHAPES = {"2d": (12, 10), "3d": (6, 5, 4)}


def one_hot(target: torch.Tensor, classes: int) -> torch.Tensor:
    return functional.one_hot(target, classes).movedim(-1, 1).double()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ce_is_torch_cross_entropy(shape):
    logits, target = batch(shape)
    expected = functional.cross_entropy(logits, target)
    torch.testing.assert_close(LOSSES["ce"]()(logits, target), expected)
    target[:, 0] = 255
    expected = functional.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(LOSSES["ce"](ignore_index=255)(logits, target), expected)


def test_binary_and_region_ce_are_torch_bce():
    logits, _ = batch(classes=3)
    regions = torch.rand(logits.shape) > 0.6
    expected = functional.binary_cross_entropy_with_logits(logits, regions.float())
    torch.testing.assert_close(LOSSES["ce"]()(logits, regions), expected)
    expected = functional.binary_cross_entropy_with_logits(logits[:, :1], regions[:, :1].float())
    torch.testing.assert_close(LOSSES["ce"]()(logits[:, :1], regions[:, 0].long()), expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_ce_with_class_weights_is_torchs(classes):
    logits, target = batch(classes=classes)
    weights = [0.2, 1.0, 3.0][:classes]
    target[:, 0] = 255
    expected = functional.cross_entropy(
        logits, target, weight=torch.tensor(weights), ignore_index=255
    )
    loss = LOSSES["ce"](ignore_index=255, class_weights=weights)
    torch.testing.assert_close(loss(logits, target), expected)
    with pytest.raises(
        ValueError, match=f"class_weights has 4 values, the logits {classes} classes"
    ):
        LOSSES["ce"](class_weights=[1, 1, 1, 1])(logits, target.clamp_max(1))


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1]])
def test_class_weights_must_be_weights(weights):
    with pytest.raises(ValueError, match="class_weights"):
        LOSSES["ce"](class_weights=weights)


@pytest.mark.parametrize("k", [10, 50, 100])
def test_topk_is_nnunets(k):
    logits, target = batch()
    expected = TopKLoss(k=k)(logits, target[:, None].float())
    torch.testing.assert_close(LOSSES["topk"](k=k)(logits, target), expected)
    # pixels that are ignored neither count nor are chosen
    target[:, 0] = 255
    pixels = functional.cross_entropy(logits, target, ignore_index=255, reduction="none")
    pixels = pixels[target != 255]
    expected = pixels.topk(int(len(pixels) * k / 100)).values.mean()
    torch.testing.assert_close(LOSSES["topk"](k=k, ignore_index=255)(logits, target), expected)


@pytest.mark.parametrize("k", [0, -1, 101, float("nan")])
def test_topk_must_be_a_percentage(k):
    with pytest.raises(ValueError, match="k must be a percentage"):
        LOSSES["topk"](k=k)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_overlap_losses_are_monais_when_every_class_is_present(
    shape, include_background, batch_dice
):
    logits, target = batch(shape)
    ours = dict(include_background=include_background, batch_dice=batch_dice, smooth=1e-5)
    theirs = dict(
        include_background=include_background,
        batch=batch_dice,
        softmax=True,
        to_onehot_y=True,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )
    label = target[:, None]
    for name, peer in [
        ("dice", MonaiDice(**theirs)),
        ("iou", MonaiDice(**{**theirs, "smooth_nr": 5e-6, "smooth_dr": 5e-6}, jaccard=True)),
        ("tversky", MonaiTversky(**theirs, alpha=0.7, beta=0.3)),
    ]:
        torch.testing.assert_close(
            LOSSES[name](**ours)(logits, target), peer(logits, label), atol=2e-6, rtol=1e-5
        )


def test_focal_is_monais_scaled_to_eq_19():
    logits, target = batch()
    # MONAI averages over pixels and classes, Eq. 19 over pixels alone
    peer = MonaiFocal(gamma=2, alpha=None, use_softmax=True, to_onehot_y=True)
    expected = 0.25 * 3 * peer(logits, target[:, None])
    torch.testing.assert_close(LOSSES["focal"]()(logits, target), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_with_one_alpha_a_class(gamma):
    logits, target = batch()
    alpha = [0.2, 0.5, 0.9]
    p = logits.double().softmax(1).gather(1, target[:, None])[:, 0].numpy()
    expected = (np.array(alpha)[target.numpy()] * (1 - p) ** gamma * -np.log(p)).mean()
    loss = LOSSES["focal"](gamma=gamma, alpha=alpha)
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="alpha has 2 values"):
        LOSSES["focal"](alpha=[0.1, 0.2])(logits, target)


def numpy_cb_dice(prob, truth, ratios, batch_dice, smooth=1e-5):
    """Eq. 21-25 over ``[B, C, pixels]``, absent classes left out."""
    groups = (
        [(prob, truth)] if batch_dice else list(zip(prob[:, None], truth[:, None], strict=True))
    )
    total = truth.sum((0, 2))
    losses = []
    for p, y in groups:
        tp, predicted, true = (p * y).sum((0, 2)), p.sum((0, 2)), y.sum((0, 2))
        dice = (2 * tp + smooth) / (predicted + true + smooth)
        ratio = (true / true.sum()) if ratios == "image" else total / total.sum()
        present = true > 0
        w = np.where(present, 1 / np.maximum(ratio, 1e-12), 0)
        losses.append(1 - (w / w.sum() * dice).sum())
    return np.mean(losses)


@pytest.mark.parametrize(
    ("ratios", "batch_dice"), [("batch", True), ("batch", False), ("image", True)]
)
def test_cb_dice_is_eq_21_to_25(ratios, batch_dice):
    logits, target = batch(classes=4, size=3)
    target[0][target[0] == 3] = 0  # class 3 is absent from one image
    prob = logits.double().softmax(1).flatten(2).numpy()
    truth = one_hot(target, 4).flatten(2).numpy()
    expected = numpy_cb_dice(prob, truth, ratios, batch_dice and ratios == "batch")
    loss = LOSSES["cb_dice"](ratios=ratios, batch_dice=batch_dice)
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_cb_dice_weighs_the_rare_class_as_the_inverse_of_its_pixels():
    target = torch.zeros(1, 10, 10, dtype=torch.long)
    target[0, 0, :4] = 1  # 4 of 100 pixels: weights 4/100 and 96/100
    logits = torch.zeros(1, 2, 10, 10)  # p = 1/2: Dice 2*.5*n / (50 + n)
    expected = 1 - (0.04 * 96 / 146 + 0.96 * 4 / 54)
    assert LOSSES["cb_dice"](smooth=0.0)(logits, target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_sigmoid_channel_equals_two_softmax_channels(name, shape):
    logits, target = batch(shape, classes=2, dtype=torch.float64)
    z = logits[:, 1:]
    pair = torch.cat((torch.zeros_like(z), z), dim=1)
    mask = torch.rand(target[:, None].shape) > 0.3
    for target_shape in (target, target[:, None]):
        torch.testing.assert_close(
            LOSSES[name]()(z, target_shape, mask), LOSSES[name]()(pair, target_shape, mask)
        )


@pytest.mark.parametrize("name", ALL)
def test_regions_are_the_mean_of_their_channels(name):
    logits, _ = batch(classes=3, dtype=torch.float64)
    regions = torch.rand(logits.shape) > 0.7
    single = [LOSSES[name]()(logits[:, c : c + 1], regions[:, c]) for c in range(3)]
    torch.testing.assert_close(LOSSES[name]()(logits, regions), torch.stack(single).mean())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["softmax", "binary", "regions"])
def test_gradient_is_the_derivative(name, mode):
    logits, target = batch((4, 3), dtype=torch.float64)
    if mode == "binary":
        logits, target = logits[:, :1], (target == 1).long()
    elif mode == "regions":
        target = torch.rand(logits.shape) > 0.5
    mask = torch.rand(logits.shape[0], 1, 4, 3) > 0.2
    loss = LOSSES[name](smooth=1e-3) if name in OVERLAP else LOSSES[name]()
    assert torch.autograd.gradcheck(
        lambda x: loss(x, target, mask), logits.clone().requires_grad_(), atol=1e-6
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["softmax", "binary"])
def test_ignored_pixels_change_nothing(name, mode):
    logits, target = batch(classes=3)
    if mode == "binary":
        logits, target = logits[:, :1], (target == 1).long()
    target[:, 3:7] = 255
    loss = LOSSES[name](ignore_index=255)
    before = loss(logits, target)
    logits[:, :, 3:7] = 50 * torch.randn_like(logits[:, :, 3:7])
    logits.requires_grad_()
    after = loss(logits, target)
    torch.testing.assert_close(after, before)
    after.backward()
    assert (logits.grad[:, :, 3:7] == 0).all()
    cropped = (
        torch.cat((logits[:, :, :3], logits[:, :, 7:]), 2),
        torch.cat((target[:, :3], target[:, 7:]), 1),
    )
    torch.testing.assert_close(loss(*cropped), before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_all_ignored_batch_is_zero_and_keeps_the_graph(name, channels):
    logits = torch.randn(2, channels, 4, 4, requires_grad=True)
    loss = LOSSES[name](ignore_index=9)(logits, torch.full((2, 4, 4), 9))
    assert loss.item() == 0
    loss.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", OVERLAP)
def test_classes_absent_from_the_target_do_not_count(name):
    logits, target = batch(classes=2)
    absent = torch.cat((logits, torch.full_like(logits[:, :1], -40)), dim=1)
    torch.testing.assert_close(LOSSES[name]()(absent, target), LOSSES[name]()(logits, target))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_perfect_logits_cost_nothing_and_inverted_ones_a_lot(name, channels):
    target = torch.randint(0, max(2, channels), (2, 8, 8))
    target.view(-1)[: max(2, channels)] = torch.arange(max(2, channels))
    truth = target[:, None].double() if channels == 1 else one_hot(target, channels)
    logits = (60 * truth - 30).float()
    assert LOSSES[name]()(logits, target).item() == pytest.approx(0, abs=1e-5)
    assert LOSSES[name]()(-logits, target).item() > 0.5


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_computed_in_float32(name, dtype):
    logits, target = batch(dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    loss = LOSSES[name]()(half, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name]()(half.detach().float(), target))
    loss.backward()
    assert half.grad.dtype == dtype
    assert half.grad.isfinite().all()


@pytest.mark.parametrize("name", ALL)
@given(
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 6e4, 1e30]),
    channels=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 9),
    gamma=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_finite_logits_never_give_nan(name, scale, channels, dtype, seed, gamma):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(2, channels, 5, 5, generator=generator) * scale).clamp(-6e4, 6e4)
    logits = (logits if dtype == torch.float16 else logits * max(scale / 6e4, 1)).to(dtype)
    target = torch.randint(0, max(channels, 2), (2, 5, 5), generator=generator)
    logits = logits.requires_grad_()
    options = {"gamma": gamma} if name == "focal" else {"smooth": 0.0} if name in OVERLAP else {}
    loss = LOSSES[name](**options)(logits, target)
    assert not loss.isnan()
    loss.backward()
    assert not logits.grad.isnan().any()


def test_a_label_out_of_range_is_named():
    logits, target = batch()
    target[0, 0, 0] = 7
    with pytest.raises(ValueError, match=r"labels from 0 to 7.*ignore_index"):
        LOSSES["ce"]()(logits, target)


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        ((2, 3, 4, 4), (2, 5, 4), {}, "does not fit"),
        ((2, 3, 4, 4), (2, 2, 4, 4), {}, "does not fit"),
        ((2, 3), (2,), {}, "B, C"),
        ((2, 1, 4, 4), (2, 4, 4), {"mode": "softmax"}, "at least two"),
        ((2, 3, 4, 4), (2, 4, 4), {"mode": "tanh"}, "mode must be"),
        ((0, 3, 4, 4), (0, 4, 4), {}, "hold no pixel"),
    ],
)
def test_shapes_that_do_not_fit_are_named(logits, target, options, message):
    with pytest.raises(ValueError, match=message):
        LOSSES["dice"](**options)(torch.zeros(logits), torch.zeros(target, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"gamma": -1}),
        ("focal", {"alpha": float("inf")}),
        ("dice", {"smooth": -1}),
        ("tversky", {"alpha": 0, "beta": 0}),
        ("cb_dice", {"ratios": "pixel"}),
    ],
)
def test_wrong_options_are_refused(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LOSSES[name](**options)
