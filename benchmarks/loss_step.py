"""Forward and backward of the four-term DMFLoss against the losses people use instead.

python benchmarks/loss_step.py [--rounds 25] [--device cuda]

Time and peak extra memory, each as a ratio to nnU-Net's Dice + cross-entropy in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import geometric_mean, heading, interleaved, peak_extra_bytes, table
from torch import Tensor
from torch.nn import functional

from dmf_plugins import DMFLoss

SHAPES = ((12, 2, 128, 128), (8, 4, 256, 256), (2, 2, 512, 512), (2, 3, 96, 96, 96))
REFERENCE = "nnU-Net DC_and_CE_loss"
Loss = Callable[[Tensor, Tensor], Tensor]


def nnunet() -> Loss:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return lambda logits, target: loss(logits, target[:, None])


def monai() -> Loss:
    from monai.losses import DiceCELoss

    loss = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)
    return lambda logits, target: loss(logits, target[:, None])


def smp() -> Loss:
    from segmentation_models_pytorch.losses import DiceLoss

    dice = DiceLoss("multiclass")
    return lambda logits, target: dice(logits, target) + functional.cross_entropy(logits, target)


def mmseg() -> Loss:
    from mmseg.models.losses import CrossEntropyLoss, DiceLoss

    ce, dice = CrossEntropyLoss(), DiceLoss()

    def total(logits: Tensor, target: Tensor) -> Tensor:
        if logits.ndim == 5:  # its Dice knows two dimensions only
            logits, target = logits.flatten(2, 3), target.flatten(1, 2)
        return ce(logits, target) + dice(logits, target)

    return total


def naive(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, Dice, IoU, CB-Dice and Tversky, each as one would write it alone."""

    def counts() -> tuple[Tensor, Tensor, Tensor]:
        prob = logits.softmax(1)
        truth = functional.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
        axes = (0, *range(2, logits.ndim))
        return (prob * truth).sum(axes), prob.sum(axes), truth.sum(axes)

    total = functional.cross_entropy(logits, target)
    hits, predicted, true = counts()
    total = total + 1 - (2 * hits / (predicted + true)).mean()
    hits, predicted, true = counts()
    total = total + 1 - (hits / (predicted + true - hits)).mean()
    hits, predicted, true = counts()
    weight = (1 / true) / (1 / true).sum()
    total = total + 1 - (weight * 2 * hits / (predicted + true)).sum()
    hits, predicted, true = counts()
    return total + 1 - (hits / (hits + 0.7 * (predicted - hits) + 0.3 * (true - hits))).mean()


def peers(device: str) -> dict[str, Loss]:
    found: dict[str, Loss] = {}
    for name, build in [
        (REFERENCE, nnunet),
        ("MONAI DiceCELoss", monai),
        ("smp DiceLoss + CE", smp),
        ("mmseg CE + DiceLoss", mmseg),
        ("five separate losses", lambda: naive),
    ]:
        try:
            found[name] = build()
        except ImportError as error:
            print(f"(without {name}: {error.name} is not installed)\n")
    dmf = DMFLoss().to(device)
    for _ in range(60):  # until the variance rule is at work
        dmf(torch.randn(1, 2, 8, 8, device=device), torch.randint(0, 2, (1, 8, 8), device=device))
    return {"DMFLoss (ce, iou, dice + cb_dice)": dmf, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")

    heading("Loss step: forward + backward")
    losses = peers(args.device)
    columns: dict[str, list[tuple[float, float]]] = {name: [] for name in losses}
    for shape in SHAPES:
        logits = torch.randn(shape, device=args.device, requires_grad=True)
        target = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=args.device)

        def step(loss: Loss, logits: Tensor = logits, target: Tensor = target) -> None:
            logits.grad = None
            loss(logits, target).backward()
            if cuda:
                torch.cuda.synchronize()

        jobs = {name: (lambda loss=loss: step(loss)) for name, loss in losses.items()}
        seconds = interleaved(jobs, args.rounds)
        for name, job in jobs.items():
            if cuda:
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                job()
                memory = torch.cuda.max_memory_allocated() - before
            else:
                memory = peak_extra_bytes(job)
            columns[name].append((seconds[name], memory))
    shown = ["x".join(map(str, shape)) for shape in SHAPES]
    for kind, factor, unit in ((0, 1e3, "ms"), (1, 2**-20, "MiB")):
        rows = []
        for name, values in columns.items():
            ratios = [v[kind] / r[kind] for v, r in zip(values, columns[REFERENCE], strict=True)]
            cells = [
                f"{factor * v[kind]:.2f} ({ratio:.2f}x)"
                for v, ratio in zip(values, ratios, strict=True)
            ]
            rows.append([name, *cells, f"{geometric_mean(ratios):.2f}x"])
        title = "median time" if unit == "ms" else "peak extra memory"
        table([f"{title}, {unit}", *shown, "geometric mean"], rows)


if __name__ == "__main__":
    main()
