"""Real processes over gloo: equal weights on every rank, whatever each rank's batch holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmf_plugins import DMFLoss, DynamicMemoryFusion

from .conftest import free_port

pytestmark = pytest.mark.slow
OPTIONS = dict(weighting="variance", memory_size=10, min_history=3)
STEPS = 20
RESUMED_AT = 9
Job = Callable[[int, int, Path], dict[str, object]]


def run(job: Job, world: int, folder: Path) -> list[dict[str, object]]:
    """What ``job`` returns on every rank."""
    mp.spawn(_worker, args=(world, free_port(), job, str(folder)), nprocs=world)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(world)]


def _worker(rank: int, world: int, port: int, job: Job, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    result = job(rank, world, Path(folder))
    torch.save(result, Path(folder) / f"{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


def assert_equal_on_all_ranks(states: list[dict[str, object]]) -> None:
    for state in states[1:]:
        for key, value in states[0].items():
            same = torch.equal(state[key], value) if torch.is_tensor(value) else state[key] == value
            assert same, key


# ---------------------------------------------------------------- the fusion


def values(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.rand(3, generator=generator)


def fusion_job(rank: int, world: int, folder: Path) -> dict[str, object]:
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


@pytest.mark.parametrize("world", [2, 4])
def test_weights_equal_those_of_one_process_fed_the_mean(world, tmp_path):
    states = run(fusion_job, world, tmp_path)
    assert_equal_on_all_ranks(states)
    single = DynamicMemoryFusion(3, **OPTIONS)
    for step in range(STEPS):
        ranks = range(world)
        if step == 5:
            ranks = [r for r in ranks if r != 1]
        if step == 6:
            ranks = [0]
        if step != 7:
            single(torch.stack([values(r, step) for r in ranks]).mean(dim=0))
    torch.testing.assert_close(states[0]["weights"], single.weights)
    assert states[0]["step"] == STEPS - 1
    assert states[0]["skipped"] == 2


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


def train(network: nn.Module, loss: DMFLoss, rank: int, steps: range) -> list[Tensor]:
    """Steps as a framework takes them: gradients that are not finite are not applied."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    weights = []
    for step in steps:
        images, labels = batch(rank, step)
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        if all(p.grad.isfinite().all() for p in network.parameters()):
            optimizer.step()
        weights.append(loss.weights)
    return weights


def ddp_job(rank: int, world: int, folder: Path) -> dict[str, object]:
    network, loss = build()
    train(DistributedDataParallel(network), loss, rank, range(STEPS))
    return {**loss.fusion.state_dict_dmf(), **network.state_dict()}


def resumed_ddp_job(rank: int, world: int, folder: Path) -> dict[str, object]:
    """The same training, stopped, saved by rank 0 alone, and taken up by ranks that load its file."""
    network, loss = build()
    train(DistributedDataParallel(network), loss, rank, range(RESUMED_AT))
    path = folder / "checkpoint.pth"
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


@pytest.mark.parametrize("world", [2, 4])
def test_under_ddp_nobody_hangs_and_nobody_diverges(world, tmp_path):
    whole = run(ddp_job, world, tmp_path)
    assert_equal_on_all_ranks(whole)
    state = whole[0]
    assert state["step"] == STEPS - 1  # step 6 had no labelled pixel on any rank
    assert state["skipped"] == 1
    assert not torch.equal(state["weights"], torch.full((3,), 1 / 3))
    assert state["weight"].isfinite().all()
    resumed = run(resumed_ddp_job, world, tmp_path)
    assert_equal_on_all_ranks([whole[0], *resumed])


def mean_job(rank: int, world: int, folder: Path) -> dict[str, object]:
    """Terms of every rank and the weights, step by step."""
    network, loss = build()
    rows = []
    for step in range(STEPS):
        terms = loss.terms(network(batch(rank, step)[0]), batch(rank, step)[1])
        loss.fuse(terms)
        usable = terms.values.isfinite().all() & terms.record
        rows.append(torch.cat([terms.values.detach(), usable[None].float(), loss.weights]))
    return {"rows": torch.stack(rows)}


def test_weights_of_the_loss_are_those_of_one_process_fed_the_mean(tmp_path):
    ranks = [r["rows"] for r in run(mean_job, 3, tmp_path)]
    single = DynamicMemoryFusion(3, **OPTIONS)
    for rows in zip(*ranks, strict=True):
        usable = [row[:3] for row in rows if row[3] > 0]
        if usable:
            single(torch.stack(usable).mean(dim=0))
        for row in rows:
            torch.testing.assert_close(row[4:], single.weights, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- nnU-Net's contract


class TwoScales(nn.Module):
    """A network with the outputs of deep supervision, the coarse one with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, 2, 3, padding=1)
        self.coarse = nn.Conv2d(1, 2, 3, padding=1, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.fine(images), self.coarse(images)]


def nnunet_job(rank: int, world: int, folder: Path) -> dict[str, object]:
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
            with torch.no_grad():  # validation, on rank 0 with another number of batches
                for _ in range(2):
                    loss(wrapped(images), targets)
    return {**loss.loss.fusion.state_dict_dmf(), **network.state_dict()}


def test_nnunets_step_with_deep_supervision(tmp_path):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    states = run(nnunet_job, 2, tmp_path)
    assert_equal_on_all_ranks(states)
    assert states[0]["step"] == STEPS - 1  # validation recorded nothing
    assert states[0]["coarse.weight"].isfinite().all()
