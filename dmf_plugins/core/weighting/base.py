"""What every rule sees, and the table of their names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dmf_plugins.core.scaling import scale_history
from dmf_plugins.registry import Registry, did_you_mean


@dataclass(frozen=True)
class Window:
    """What a rule sees of the memory at one step.

    Attributes:
        history: ``[M, N]`` float32 raw loss values, oldest first, the current step last.
        valid: ``[M, 1]`` bool; False for rows at the top that no step has filled yet.
        log_prior: ``[N]`` log of the weights the rule gave last (the prior at first). With
            ``min_weight`` set, the bounded weights.
        step: 0-d int64, recorded steps including the current one; None stands for as many as are
            valid.
        carry: ``[carry_rows, N]``, what a :class:`CarryingRule` keeps; None for other rules.
    """

    history: Tensor
    valid: Tensor
    log_prior: Tensor
    step: Tensor | None = None
    carry: Tensor | None = None

    def count(self) -> Tensor:
        """Number of valid rows, 0-d int64."""
        return self.valid.sum()

    def steps(self) -> Tensor:
        """Recorded steps including the current one, 0-d int64."""
        return self.count() if self.step is None else self.step

    def age(self) -> Tensor:
        """``[M, 1]`` int64: 1 for the current step, 2 for the one before it, ..."""
        rows = self.history.shape[0]
        return torch.arange(rows, 0, -1, device=self.history.device)[:, None]

    def blocks(self, number: int) -> Tensor:
        """Means over ``number`` equal blocks of consecutive steps, the newest block first.

        A block holds as many steps as fit, so up to ``number - 1`` of the oldest are left out.
        Blocks of a memory with fewer than ``number`` steps are NaN.

        Returns:
            ``[number, N]``.
        """
        size = self.count() // number
        block = torch.div(self.age() - 1, size.clamp_min(1), rounding_mode="floor")
        inside = (block == torch.arange(number, device=block.device)) & self.valid
        sums = torch.where(inside.T[:, :, None], self.history, 0.0).sum(dim=1)
        return torch.where(size > 0, sums / size.clamp_min(1), torch.nan)

    def low(self) -> Tensor:
        """Smallest valid value of each term, ``[N]``."""
        return torch.where(self.valid, self.history, torch.inf).amin(dim=0)

    def high(self) -> Tensor:
        """Largest valid value of each term, ``[N]``."""
        return torch.where(self.valid, self.history, -torch.inf).amax(dim=0)

    def scaled(self) -> Tensor:
        """History after Eq. 10 and Eq. 9, ``[M, N]``; zero in rows that are not valid."""
        return scale_history(self.history, self.valid)


Rule = Callable[[Window], Tensor]
WeightingSpec = str | Mapping[str, Any]
WEIGHTINGS: Registry[Any] = Registry("weighting")


@runtime_checkable
class CarryingRule(Protocol):
    """A rule with running sums of its own, which the fusion saves and resumes like its memory."""

    carry_rows: int

    def update(self, window: Window) -> Tensor:
        """New ``[carry_rows, N]`` from ``window.carry`` (zeros at first) and the current step.

        Called once for each recorded step, before the rule itself, which then finds the result in
        ``window.carry``.
        """

    def __call__(self, window: Window) -> Tensor:
        """Log score of each term, ``[N]``."""


def build_rule(spec: WeightingSpec) -> Rule:
    """The rule a name, or a dict ``{"type": name, **options}``, stands for.

    Raises:
        KeyError: the name is not registered.
        TypeError: the dict has no ``type``, or an option the rule does not take.
        ValueError: an option has a value the rule refuses.
    """
    options = {"type": spec} if isinstance(spec, str) else dict(spec)
    if "type" not in options:
        raise TypeError(f"a weighting given as a dict needs a 'type', got {spec!r}")
    name = options.pop("type")
    entry = WEIGHTINGS[name]
    if isinstance(entry, type):
        known = list(inspect.signature(entry).parameters)
    else:
        known = list(inspect.signature(entry).parameters)[1:]
    for key in options:
        if key not in known:
            raise TypeError(
                f"weighting {name!r} has no option {key!r}"
                + (f": {did_you_mean(key, known)}" if known else "; it takes none")
            )
    if isinstance(entry, type):
        return entry(**options)
    return functools.partial(entry, **options) if options else entry
