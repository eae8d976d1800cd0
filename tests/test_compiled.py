"""The nnU-Net loss under ``torch.compile``, as the mixin uses it on CUDA; here by inductor on the CPU."""

from __future__ import annotations

import pytest
import torch

from dmf_plugins import DMFLoss
from dmf_plugins.nnunet.compiled import Compiled
from dmf_plugins.nnunet.loss import DeepSupervisionDMFLoss

pytestmark = pytest.mark.slow


def make(said: list[str] | None = None) -> DeepSupervisionDMFLoss:
    loss = DMFLoss(memory_size=8, min_history=2)
    wrapped = DeepSupervisionDMFLoss(loss, [0.6, 0.4, 0.0])
    if said is not None:
        wrapped.terms = Compiled(wrapped.terms, said.append)
    return wrapped


def batch(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sides = (32, 16, 8)
    outputs = [torch.randn(2, 3, s, s, generator=generator).requires_grad_() for s in sides]
    return outputs, [torch.randint(0, 3, (2, 1, s, s), generator=generator).float() for s in sides]


def compare(ours: DeepSupervisionDMFLoss, plain: DeepSupervisionDMFLoss) -> None:
    for seed in range(5):
        totals, gradients = [], []
        for loss in (ours, plain):
            outputs, targets = batch(seed)
            totals.append(loss(outputs, targets))
            totals[-1].backward()
            gradients.append([output.grad for output in outputs[:2]])
        torch.testing.assert_close(totals[0], totals[1])
        torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(ours.loss.last_row(), plain.loss.last_row())
    assert ours.loss.fusion.step == 5


def test_the_compiled_loss_is_the_plain_one_in_one_graph():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    said: list[str] = []
    compare(make(said), make())
    assert not said
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("scale", [0, 1])
def test_a_label_out_of_range_is_named_though_a_compiled_graph_cannot_raise(scale):
    """As of masks of 0 and 255: the terms of such labels look excellent."""
    torch._dynamo.reset()
    said: list[str] = []
    loss = make(said)
    outputs, targets = batch(0)
    loss(outputs, targets)
    targets[scale][0, 0, 0, 0] = 255
    with pytest.raises(ValueError, match="labels from 0 to 255"):
        loss(outputs, targets)
    assert loss.loss.fusion.step == 1
    assert not said


def test_without_a_compiler_it_trains_on_and_says_so_once(monkeypatch, tmp_path):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)
    said: list[str] = []
    compare(make(said), make())
    assert len(said) == 1
    assert said[0].startswith("the DMF loss is not compiled: ")


def test_an_error_of_the_loss_stays_its_own():
    said: list[str] = []
    function = Compiled(torch.linalg.cholesky, said.append)
    with pytest.raises(torch.linalg.LinAlgError):
        function(-torch.eye(2))
    assert not said
