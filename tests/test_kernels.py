"""The hand-derived gradients equal those of the plain operations, for every mode."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dmf_plugins import LOSSES, DMFLoss
from dmf_plugins.losses import kernels
from dmf_plugins.losses.kernels import (
    FusedSigmoid,
    FusedSoftmax,
    plain_sigmoid,
    plain_softmax,
)

TERMS = sorted(LOSSES)


def draw(classes: int, pixels: int, seed: int, ignore: bool, dtype=torch.float64):
    """Logits ``[3, classes, pixels]``, labels of which the last class is absent, ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, classes, pixels, generator=generator, dtype=dtype)
    target = torch.randint(0, max(1, classes - 1), (3, 1, pixels), generator=generator).to(dtype)
    ignored = torch.rand(3, 1, pixels, generator=generator) < 0.3 if ignore else None
    if ignored is not None:
        target = target.masked_fill(ignored, -1)
    return logits, target, ignored


def apply_sigmoid(logits, truth, ignored, pair=False):
    return FusedSigmoid.apply(logits, truth, ignored, pair)


def both(fused, plain, logits, truth, ignored):
    """Outputs and gradients of a random scalar of the outputs, for both ways."""
    found = []
    for way in (fused, plain):
        z = logits.clone().requires_grad_()
        outputs = way(z, truth, ignored)
        generator = torch.Generator().manual_seed(7)
        scalar = sum(
            (torch.randn(o.shape, generator=generator, dtype=o.dtype) * o).sum() for o in outputs
        )
        scalar.backward()
        found.append([*outputs, z.grad])
    return zip(*found, strict=True)


@given(
    classes=st.integers(2, 5),
    pixels=st.integers(1, 40),
    seed=st.integers(0, 99),
    ignore=st.booleans(),
)
def test_fused_softmax_is_the_plain_one(classes, pixels, seed, ignore):
    case = draw(classes, pixels, seed, ignore)
    for ours, expected in both(FusedSoftmax.apply, plain_softmax, *case):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)


@given(
    groups=st.integers(1, 4),
    pixels=st.integers(1, 40),
    seed=st.integers(0, 99),
    ignore=st.booleans(),
)
def test_fused_sigmoid_is_the_plain_one(groups, pixels, seed, ignore):
    logits, _target, ignored = draw(groups, pixels, seed, ignore)
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(logits.shape, generator=generator) < 0.3).to(logits.dtype)
    if ignored is not None:
        truth = truth.masked_fill(ignored, 0)
    for pair in [False, True][: 2 if groups == 2 else 1]:
        fused, plain = partial(apply_sigmoid, pair=pair), partial(plain_sigmoid, pair=pair)
        y = truth[:, :1] if pair else truth
        for ours, expected in both(fused, plain, logits, y, ignored):
            torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("ignore", [False, True])
def test_gradients_are_the_derivatives(ignore):
    logits, target, ignored = draw(3, 5, 0, ignore)
    z = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: FusedSoftmax.apply(x, target, ignored)[:3], z)
    truth = (target == 0).to(z.dtype).expand(-1, 3, -1)
    truth = truth if ignored is None else truth.masked_fill(ignored, 0)
    assert torch.autograd.gradcheck(lambda x: apply_sigmoid(x, truth, ignored)[:3], z)
    pair, y = z.detach()[:, :2].requires_grad_(), truth[:, :1]
    assert torch.autograd.gradcheck(lambda x: apply_sigmoid(x, y, ignored, pair=True)[:3], pair)


@pytest.mark.parametrize("mode", ["binary", "two", "five", "regions"])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("spatial", [(40, 30), (10, 12, 8)])
def test_the_whole_loss_in_float32_is_the_plain_one(mode, ignore, spatial, monkeypatch):
    channels = {"binary": 1, "two": 2, "five": 5, "regions": 3}[mode]
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(4, channels, *spatial, generator=generator)
    target = torch.randint(0, max(2, channels - 1), (4, 1, *spatial), generator=generator)
    if mode == "regions":
        target = (torch.rand(logits.shape, generator=generator) < 0.2).long()
    mask = torch.rand(4, 1, *spatial, generator=generator) < 0.7 if ignore else None
    found = []
    for fused in (True, False):
        if not fused:
            for name in ("sigmoid", "softmax"):
                monkeypatch.setattr(
                    "dmf_plugins.losses.statistics." + f"{name}_counts",
                    getattr(kernels, f"plain_{name}"),
                )
        z = logits.clone().requires_grad_()
        loss = DMFLoss(TERMS, batch_dice=False)
        total = loss(z, target, mask)
        total.backward()
        found.append((loss.last["terms"], total.detach(), 1e4 * z.grad))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_second_derivative_is_refused_rather_than_wrong():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(
        LOSSES["dice"]()(logits, torch.randint(0, 2, (1, 4, 4))), logits, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("plain", [False, True])
def test_garbage_under_ignored_pixels_does_not_spread(classes, plain, monkeypatch):
    if plain:  # as where it is compiled
        monkeypatch.setattr("dmf_plugins.losses.statistics.sigmoid_counts", kernels.plain_sigmoid)
        monkeypatch.setattr("dmf_plugins.losses.statistics.softmax_counts", kernels.plain_softmax)
    logits = torch.randn(2, classes, 6, 6)
    target = torch.randint(0, classes, (2, 6, 6))
    target[:, 0] = 255
    logits[:, :, 0] = torch.nan
    logits[:, 0, 0, 0] = torch.inf
    logits.requires_grad_()
    total = DMFLoss(TERMS, ignore_index=255)(logits, target)
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, :, 0] == 0).all()


DTYPES = [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.int32, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignore_index", [None, 1])
def test_labels_of_any_dtype(dtype, ignore_index):
    logits = torch.randn(2, 2, 6, 6)
    target = torch.randint(0, 2, (2, 6, 6))
    found, expected = (
        DMFLoss(ignore_index=ignore_index)(logits, t) for t in (target.to(dtype), target)
    )
    torch.testing.assert_close(found, expected)


def test_a_loss_run_without_data_leaves_the_real_one_alone():
    """As where a tool measures a model before its training."""

    def run(loss):
        return loss(torch.randn(3, 4, 7, 9), torch.randint(0, 4, (3, 7, 9)))

    with FakeTensorMode():
        assert run(DMFLoss()).shape == ()
    assert run(DMFLoss()).isfinite()
    with FakeTensorMode():
        assert run(DMFLoss()).shape == ()


@pytest.mark.parametrize(("classes", "bad"), [(2, 2), (2, -1), (3, 7)])
def test_a_label_out_of_range_is_named_whatever_the_path(classes, bad):
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, 0, 0] = bad
    with pytest.raises(ValueError, match="ignore_index"):
        DMFLoss()(torch.randn(1, classes, 4, 4), target)


@pytest.mark.parametrize("scales", [1, 6])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_step_has_no_more_device_operations_than_promised(scales, classes):
    """Views left out; the numbers of docs/performance.md."""

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            schema = func._schema
            self.operations += schema.is_mutable or not any(r.alias_info for r in schema.returns)
            return func(*args, **(kwargs or {}))

    counts = []
    for terms in (("ce", "iou", "dice"), ("ce", "iou", "dice", "tversky", "cb_dice")):
        loss = DMFLoss(terms, mode="softmax", min_history=2)
        sizes = [32 >> i for i in range(scales)]
        batch = [
            (
                torch.randn(2, classes, size, size, requires_grad=True),
                torch.randint(0, classes, (2, 1, size, size)).float(),
                None,
            )
            for size in sizes
        ]
        weights = [2.0**-i for i in range(scales)]
        for _ in range(4):
            loss.fuse(loss.terms_of_scales(batch, weights)).backward()
        with Count() as count:
            loss.fuse(loss.terms_of_scales(batch, weights)).backward()
        counts.append(count.operations)
    assert counts[0] == counts[1]  # whatever the number of region terms
    assert counts[0] <= (92 if scales == 1 else 217)
