"""Device operations and time of nnU-Net's deeply supervised loss, stock against DMF.

python benchmarks/deep_supervision.py [--rounds 25] [--device cuda] [--threads 1]

An operation is what torch dispatches in one training step, forward and backward, views left out: on a
GPU about one kernel launch each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from common import heading, interleaved, table
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dmf_plugins import WEIGHTINGS, DMFLoss, DynamicMemoryFusion
from dmf_plugins.nnunet.loss import DeepSupervisionDMFLoss

SHAPES = ((4, 2, 64, 64), (12, 2, 128, 128), (2, 3, 40, 56, 40))
SCALES = 6


class Count(TorchDispatchMode):
    """Counts operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        self.operations += schema.is_mutable or not any(r.alias_info for r in schema.returns)
        return func(*args, **(kwargs or {}))


def scale_weights() -> list[float]:
    weights = 0.5 ** np.arange(SCALES)
    weights[-1] = 0
    return list(weights / weights.sum())


def losses(rules: Mapping[str, str], scales: bool = True) -> dict[str, nn.Module]:
    options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    stock = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    found: dict[str, nn.Module] = {"stock": stock}
    if scales:
        found["stock"] = DeepSupervisionWrapper(stock, scale_weights())
    for name, rule in rules.items():
        loss = DMFLoss(mode="softmax", weighting=rule, min_history=3)
        found[name] = DeepSupervisionDMFLoss(loss, scale_weights() if scales else None).train()
    return found


def batch(shape: tuple[int, ...], device: str) -> tuple[list[Tensor], list[Tensor]]:
    outputs, targets = [], []
    for i in range(SCALES):
        size = [max(1, n >> i) for n in shape[2:]]
        logits = torch.randn(*shape[:2], *size, device=device, requires_grad=True)
        outputs.append(logits)
        targets.append(torch.randint(0, shape[1], (shape[0], 1, *size), device=device).float())
    return outputs, targets


def step(loss: nn.Module, outputs: Any, targets: Any) -> None:
    for logits in outputs if isinstance(outputs, list) else [outputs]:
        logits.grad = None
    loss(outputs, targets).backward()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def operations(job: Callable[[], object]) -> int:
    for _ in range(5):
        job()
    with Count() as count:
        job()
    return count.operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    heading(f"Deep supervision, {args.device}, {args.threads} thread(s)")
    rules = {rule: rule for rule in ("fixed", "variance", "mad", "bayesian")}
    rows = []
    for scales in (True, False):
        for classes in (2, 4):
            outputs, targets = batch((2, classes, 64, 64), args.device)
            case = (outputs, targets) if scales else (outputs[0], targets[0])
            counts = [
                operations(partial(step, loss.to(args.device), *case))
                for loss in losses(rules, scales).values()
            ]
            rows.append([f"{SCALES if scales else 1} scale(s), {classes} classes", *counts])
    table(["operations per step", "stock", *rules], rows)

    updates = {}
    for rule in sorted(WEIGHTINGS):
        fusion = DynamicMemoryFusion(3, weighting=rule, min_history=3)
        values = torch.rand(3)
        train, evaluate = (
            operations(partial(fusion.train(mode), values)) for mode in (True, False)
        )
        updates[rule] = train - evaluate
    table(["weight update alone", *updates], [["operations", *updates.values()]])

    rows = []
    for shape in SHAPES:
        case = batch(shape, args.device)
        jobs = {
            name: partial(step, loss.to(args.device), *case)
            for name, loss in losses({"DMF": "variance"}).items()
        }
        seconds = interleaved(jobs, args.rounds, warmup=10)
        rows.append(
            ["x".join(map(str, shape)), *(f"{1e3 * s:.2f}" for s in seconds.values())]
            + [f"{seconds['DMF'] / seconds['stock']:.2f}x"]
        )
    table(["median time, ms", "stock", "DMF (variance)", "ratio"], rows)


if __name__ == "__main__":
    main()
