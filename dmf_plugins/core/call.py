"""The values of one call of the loss, over processes and over the calls of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Call(NamedTuple):
    """Values ``[N]``, whether to record them, and whether some were not finite (0-d bool each)."""

    values: Tensor
    usable: Tensor
    broken: Tensor


def over_ranks(values: Tensor, record: Tensor | None) -> Call:
    """The mean over the ranks whose values are finite and to be recorded."""
    usable = torch.linalg.vector_norm(values, torch.inf) < torch.inf
    broken = ~usable
    if record is not None:
        usable, broken = usable & record, broken & record
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # every rank always takes part, whatever its batch held, so that none can wait alone
        values = torch.where(usable, values, 0.0)
        message = torch.cat((values, torch.stack((usable, broken)).to(values)))
        dist.all_reduce(message)
        values = message[:-2] / message[-2].clamp_min(1)
        usable, broken = message[-2] > 0, message[-1] > 0
    return Call(values, usable, broken)


def mean_of(calls: Sequence[Call]) -> Call:
    """One call in the place of those of a step: the mean of what is usable."""
    values = torch.stack([torch.where(call.usable, call.values, 0.0) for call in calls])
    usable = torch.stack([call.usable for call in calls])
    return Call(
        values.sum(dim=0) / usable.sum().clamp_min(1),
        usable.any(),
        torch.stack([call.broken for call in calls]).any(),
    )
