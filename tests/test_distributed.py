"""Real processes over gloo: equal weights on every rank, whatever each rank's batch holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmf_plugins import DynamicMemoryFusion

from .support import distributed
from .support.distributed import OPTIONS, STEPS, State, result, values

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what every rank of every case came to."""
    folder = tmp_path_factory.mktemp("ranks")
    distributed.run(folder)
    return folder


def assert_equal_on_all_ranks(states: list[State]) -> None:
    for state in states[1:]:
        for key, value in states[0].items():
            same = torch.equal(state[key], value) if torch.is_tensor(value) else state[key] == value
            assert same, key


@pytest.mark.parametrize("world", [2, 4])
def test_weights_equal_those_of_one_process_fed_the_mean(world, ranks):
    states = result(ranks, f"fusion{world}")
    assert_equal_on_all_ranks(states)
    single = DynamicMemoryFusion(3, **OPTIONS)
    for step in range(STEPS):
        counted = range(world)
        if step == 5:
            counted = [r for r in counted if r != 1]
        if step == 6:
            counted = [0]
        if step != 7:
            single(torch.stack([values(r, step) for r in counted]).mean(dim=0))
    torch.testing.assert_close(states[0]["weights"], single.weights)
    assert states[0]["step"] == STEPS - 1
    assert states[0]["skipped"] == 2


@pytest.mark.parametrize("world", [2, 4])
def test_under_ddp_nobody_hangs_and_nobody_diverges(world, ranks):
    whole = result(ranks, f"ddp{world}")
    assert_equal_on_all_ranks(whole)
    state = whole[0]
    assert state["step"] == STEPS - 1  # step 6 had no labelled pixel on any rank
    assert state["skipped"] == 1
    assert not torch.equal(state["weights"], torch.full((3,), 1 / 3))
    assert state["weight"].isfinite().all()


@pytest.mark.parametrize("world", [2, 4])
def test_under_ddp_a_resumed_training_is_the_uninterrupted_one(world, ranks):
    assert_equal_on_all_ranks([result(ranks, f"ddp{world}")[0], *result(ranks, f"resumed{world}")])


def test_weights_of_the_loss_are_those_of_one_process_fed_the_mean(ranks):
    states = result(ranks, "terms3")
    single = DynamicMemoryFusion(3, **OPTIONS)
    for step in range(STEPS):
        usable = [state["values"][step] for state in states if state["usable"][step]]
        if usable:
            single(torch.stack(usable).mean(dim=0))
        for state in states:
            torch.testing.assert_close(state["weights"][step], single.weights, atol=1e-5, rtol=0)


def test_nnunets_step_with_deep_supervision(ranks):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    states = result(ranks, "nnunet2")
    assert_equal_on_all_ranks(states)
    assert states[0]["step"] == STEPS - 1  # validation recorded nothing
    assert states[0]["coarse.weight"].isfinite().all()
