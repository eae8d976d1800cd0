"""Real processes over gloo: equal weights on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dmf_plugins import DynamicMemoryFusion

from .conftest import free_port

OPTIONS = dict(weighting="variance", memory_size=10, min_history=3)
STEPS = 20


def values(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.rand(3, generator=generator)


def worker(rank: int, world: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
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
    torch.save(fusion.state_dict_dmf(), Path(folder) / f"{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_weights_equal_those_of_one_process_fed_the_mean(world, tmp_path):
    mp.spawn(worker, args=(world, free_port(), str(tmp_path)), nprocs=world)
    states = [torch.load(tmp_path / f"{r}.pth", weights_only=True) for r in range(world)]
    for state in states[1:]:
        assert all(
            torch.equal(state[k], v) for k, v in states[0].items() if isinstance(v, torch.Tensor)
        )

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
