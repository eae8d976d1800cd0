"""What the ranks of ``tests/test_distributed.py`` do: every case in the same four processes."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmf_plugins import DMFLoss, DynamicMemoryFusion

OPTIONS = dict(weighting="variance", memory_size=10, min_history=3)
STEPS = 20
RESUMED_AT = 9
State = dict[str, object]


def run(folder: Path) -> None:
    """Every case, one after the other; each rank leaves ``CASE.RANK.pth`` in ``folder``."""
    # imported once, before the ranks are forked from that clean process
    preload = ["dmf_plugins", "torch.nn.parallel", "dmf_plugins.nnunet.loss"]
    mp.get_context("forkserver").set_forkserver_preload(preload)
    world = max(world for _, world in CASES.values())
    mp.start_processes(_rank, args=(str(folder),), nprocs=world, start_method="forkserver")


def result(folder: Path, case: str) -> list[State]:
    """What the job of ``case`` returned on every rank; fails with the traceback of one that raised."""
    paths = [folder / f"{case}.{rank}.pth" for rank in range(CASES[case][1])]
    states = [torch.load(path, weights_only=True) for path in paths]
    raised = [str(state["raised"]) for state in states if "raised" in state]
    assert not raised, "\n".join(raised)
    return states


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for case, (_, world) in CASES.items():
        if rank < world:
            torch.save(_attempt(case, rank, Path(folder)), Path(folder) / f"{case}.{rank}.pth")


def _attempt(case: str, rank: int, folder: Path) -> State:
    """A process group of its own, so that a case that raises or hangs harms no other."""
    job, world = CASES[case]
    meeting = f"file://{folder / case}.group"
    limit = timedelta(minutes=2)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=world, timeout=limit)
    try:
        state = job(rank, folder)
        dist.barrier()
    except Exception:
        state = {"raised": f"rank {rank}: {traceback.format_exc()}"}
    finally:
        dist.destroy_process_group()
    return state


# ---------------------------------------------------------------- the fusion


def values(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.rand(3, generator=generator)


def fusion(rank: int, folder: Path) -> State:
    fusion = DynamicMemoryFusion(3, **OPTIONS)
    for step in range(STEPS):
        losses = values(rank, step)
        record = None
        if rank == 1 and step == 5:
            losses[0] = torch.nan  # one rank diverges
        if step == 6:
            record = torch.tensor(rank == 0)  # all ignored on the others
        if step == 7:
            losses[:] = torch.inf  # all diverge
        fusion(losses, record=record)
    return fusion.state_dict_dmf()


# ---------------------------------------------------------------- the loss in torch's DDP


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Images and labels of one rank; of uneven size, and on some steps unusable on some rank."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    size = 1 + (rank + step) % 3
    images = torch.randn(size, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 2, (size, 8, 8), generator=generator)
    if rank == 1 and step in (4, 12):
        labels[:] = 255  # nothing labelled here
    if step == 6:
        labels[:] = 255  # nothing labelled anywhere
    if rank == 0 and step == 8:
        images[0, 0, 0, 0] = torch.nan  # this rank's terms are NaN
    return images, labels


def build() -> tuple[nn.Module, DMFLoss]:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3, padding=1)
    loss = DMFLoss(("ce", "iou", "dice"), "cb_dice", **OPTIONS, ignore_index=255)
    return network, loss


def train(network: nn.Module, loss: DMFLoss, rank: int, steps: range) -> None:
    """Steps as a framework takes them: gradients that are not finite are not applied."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for step in steps:
        images, labels = batch(rank, step)
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        if all(p.grad.isfinite().all() for p in network.parameters()):
            optimizer.step()


def ddp(rank: int, folder: Path) -> State:
    network, loss = build()
    train(DistributedDataParallel(network), loss, rank, range(STEPS))
    return {**loss.fusion.state_dict_dmf(), **network.state_dict()}


def resumed(rank: int, folder: Path) -> State:
    """The same training, stopped, saved by rank 0 alone, and taken up by ranks that load its file."""
    network, loss = build()
    train(DistributedDataParallel(network), loss, rank, range(RESUMED_AT))
    path = folder / f"checkpoint{dist.get_world_size()}.pth"
    if rank == 0:
        content = {"network": network.state_dict(), "dmf": loss.fusion.state_dict_dmf()}
        torch.save(content, path)
    dist.barrier()
    content = torch.load(path, weights_only=True)
    network, loss = build()
    network.load_state_dict(content["network"])
    loss.fusion.load_state_dict_dmf(content["dmf"])
    train(DistributedDataParallel(network), loss, rank, range(RESUMED_AT, STEPS))
    return {**loss.fusion.state_dict_dmf(), **network.state_dict()}


def terms(rank: int, folder: Path) -> State:
    """Terms of every rank, whether they count, and the weights, step by step."""
    network, loss = build()
    rows: dict[str, list[Tensor]] = {"values": [], "usable": [], "weights": []}
    for step in range(STEPS):
        images, labels = batch(rank, step)
        found = loss.terms(network(images), labels)
        loss.fuse(found)
        rows["values"].append(found.values.detach()[:3])  # the auxiliary is the last
        rows["usable"].append(found.values.isfinite().all() & found.record)
        rows["weights"].append(loss.weights)
    return {name: torch.stack(row) for name, row in rows.items()}


# ---------------------------------------------------------------- nnU-Net's contract


class TwoScales(nn.Module):
    """A network with the outputs of deep supervision, the coarse one with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, 2, 3, padding=1)
        self.coarse = nn.Conv2d(1, 2, 3, padding=1, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.fine(images), self.coarse(images)]


def nnunet(rank: int, folder: Path) -> State:
    """nnU-Net's step: DDP around the network, the loss called in validation too, never in eval."""
    from dmf_plugins.nnunet.loss import DeepSupervisionDMFLoss

    torch.manual_seed(0)
    network = TwoScales()
    wrapped = DistributedDataParallel(network)  # complains about parameters without a gradient
    loss = DeepSupervisionDMFLoss(DMFLoss(**OPTIONS, ignore_index=255), [1.0, 1e-6])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for step in range(STEPS):
        images, labels = batch(rank, step)
        targets = [labels[:, None], labels[:, None, ::2, ::2]]
        optimizer.zero_grad()
        loss(wrapped(images), targets).backward()
        if all(p.grad.isfinite().all() for p in network.parameters()):
            optimizer.step()
        if step % 5 == 4:
            with torch.no_grad():  # validation
                for _ in range(2):
                    loss(wrapped(images), targets)
    return {**loss.loss.fusion.state_dict_dmf(), **network.state_dict()}


CASES: dict[str, tuple[Callable[[int, Path], State], int]] = {
    "fusion4": (fusion, 4),
    "ddp4": (ddp, 4),
    "resumed4": (resumed, 4),
    "terms3": (terms, 3),
    "fusion2": (fusion, 2),
    "ddp2": (ddp, 2),
    "resumed2": (resumed, 2),
    "nnunet2": (nnunet, 2),
}
