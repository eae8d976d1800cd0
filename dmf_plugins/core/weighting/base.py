"""What every rule sees, what it may keep, and the table of their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmf_plugins.core.scaling import scale_history
from dmf_plugins.core.spec import Spec, check_options, option_names, split
from dmf_plugins.registry import Registry

if TYPE_CHECKING:
    from dmf_plugins.core.config import DMFConfig


@dataclass(frozen=True)
class Window:
    """What a rule sees of the memory at one step.

    Attributes:
        history: ``[M, N]`` float32 raw loss values, oldest first, the current step last.
        valid: ``[M, 1]`` bool; False for rows at the top that no step has filled yet.
        step: 0-d int64, recorded steps including the current one.
        log_prior: ``[N]`` log of the weights the rule gave last (the prior at first), for a rule
            that is a function; with ``min_weight`` set, of the bounded weights.
    """

    history: Tensor
    valid: Tensor
    step: Tensor
    log_prior: Tensor | None = None

    def count(self) -> Tensor:
        """Number of valid rows, 0-d int64."""
        return self.step.clamp(max=self.history.shape[0])

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
        return scale_history(self.history, self.valid) * self.valid


class Rule(nn.Module):
    """From the memory to one log score per term; the weights are the softmax of the scores.

    A subclass defines :meth:`forward`, and what it keeps between steps in :meth:`initial_state`.
    The fusion saves, resumes and resets that state, and takes a change back where a step is not
    recorded, so that a rule never has to ask. Rules run inside the training step: no branch on a
    tensor's value. State is replaced (``self.carry = new``), never changed in place.

    Attributes:
        adapts: False for a rule that takes nothing from the memory; its :meth:`forward` is not
            called and the fusion's weights stay.
    """

    adapts = True

    def initial_state(self, config: DMFConfig) -> dict[str, Tensor]:
        """Name -> initial value of everything the rule keeps; an ``nn.Parameter`` is learned.

        Raises:
            ValueError: another setting contradicts the rule.
        """
        return {}

    def update(self, window: Window) -> None:
        """Take note of a recorded step, before :meth:`forward`."""

    def forward(self, window: Window) -> Tensor:
        """Log score of each term, ``[N]``; all ``-inf`` keeps the last weights."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(window)")

    def adapted(self, log_weights: Tensor) -> None:
        """Take note of the log weights, ``[N]``, that came of the scores."""

    def factors(self, weights: Tensor) -> Tensor:
        """Factor of each term in the total, from the fusion's weights, ``[N]`` each."""
        return weights

    def penalty(self) -> Tensor | None:
        """What the total holds beside the terms, 0-d or None."""
        return None


class PriorRule(Rule):
    """A rule whose last weights are its next prior, kept as logarithms (Eq. 8)."""

    log_prior: Tensor

    def initial_state(self, config: DMFConfig) -> dict[str, Tensor]:
        return {"log_prior": torch.tensor(config.prior_distribution(len(config.losses))).log()}

    def adapted(self, log_weights: Tensor) -> None:
        self.log_prior = log_weights


class FunctionRule(PriorRule):
    """A plain function of the window as a rule; the window it gets has ``log_prior``."""

    def __init__(self, function: Callable[..., Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, window: Window) -> Tensor:
        return self.function(replace(window, log_prior=self.log_prior), **self.options)


def check_memory(config: DMFConfig, steps: int, why: str) -> None:
    """Raise ``ValueError`` where the memory never holds the steps that a rule needs to adapt."""
    if config.memory_size < steps:
        raise ValueError(
            f"memory_size must be at least {steps}, got {config.memory_size}: {why}, so the weights "
            "would never adapt"
        )


WEIGHTINGS: Registry[Any] = Registry("weighting", "dmf_plugins.weightings")


def check_rule(spec: Spec) -> None:
    """Raise ``KeyError`` for a rule that is not registered, ``TypeError`` for an unknown option."""
    name, options = split(spec)
    entry = WEIGHTINGS[name]
    check_options(f"weighting {name!r}", options, _options_of(entry))


def build_rule(spec: Spec) -> Rule:
    """The rule a canonical spec stands for.

    Raises:
        KeyError, TypeError: as :func:`check_rule`.
        ValueError: an option has a value the rule refuses.
    """
    check_rule(spec)
    name, options = split(spec)
    entry = WEIGHTINGS[name]
    if isinstance(entry, type):
        rule = entry(**options)
        return rule if isinstance(rule, Rule) else FunctionRule(rule, {})
    return FunctionRule(entry, options)


def rule_settings(spec: Spec) -> dict[str, Any]:
    """Option -> value of a rule, defaults included."""
    name, options = split(spec)
    entry = WEIGHTINGS[name]
    parameters = inspect.signature(entry).parameters
    return {key: options.get(key, parameters[key].default) for key in _options_of(entry)}


def _options_of(entry: Any) -> list[str]:
    return option_names(entry, skip=0 if isinstance(entry, type) else 1)
