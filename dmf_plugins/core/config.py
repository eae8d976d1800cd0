"""Validated settings of the fusion and of the loss built around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dmf_plugins.core.weighting import WeightingSpec, build_rule
from dmf_plugins.registry import did_you_mean

LossSpec = str | Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True)
class DMFConfig:
    """Every setting of Dynamic Memory Fusion; the defaults are the paper's best (variance + CB-Dice).

    Args:
        losses: base terms, each a name from ``LOSSES``, a dict ``{type: name, **kwargs}`` or a
            callable ``(logits, target) -> scalar``.
        auxiliary: the fading term, given likewise; None for no auxiliary loss.
        weighting: name of a rule in ``WEIGHTINGS``, or a dict ``{type: name, **options}``.
        memory_size: steps the memory holds.
        min_history: recorded steps before the weights first move.
        initial_weights: weights until then (and the weights of ``fixed``); None is uniform.
            Normalised to sum 1.
        prior: prior of the ``bayesian`` rule; None is uniform. Normalised to sum 1.
        gamma0, decay_rate, decay_interval: Eq. 2.
        min_weight: lower bound of every adapted weight, ``w <- min_weight + (1 - N min_weight) w``.
        weight_ema: beta of ``w_t <- beta * w_(t-1) + (1 - beta) * w``; None is no smoothing.

    Raises:
        ValueError: a value is out of range, or two settings contradict each other.
        KeyError: ``weighting`` is not registered.
        TypeError: a key given to :meth:`from_dict`, or an option of the weighting, does not exist.
    """

    losses: Sequence[LossSpec] = ("ce", "iou", "dice")
    auxiliary: LossSpec | None = "cb_dice"
    weighting: WeightingSpec = "variance"
    memory_size: int = 150
    min_history: int = 50
    initial_weights: Sequence[float] | None = None
    prior: Sequence[float] | None = None
    gamma0: float = 5.0
    decay_rate: float = 0.05
    decay_interval: int = 100
    min_weight: float = 0.0
    weight_ema: float | None = None

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> DMFConfig:
        """Build from a plain dict (a config file, a trainer's class attribute)."""
        known = {field.name for field in fields(cls)}
        for key in options:
            if key not in known:
                raise TypeError(f"unknown DMF option {key!r}: {did_you_mean(key, sorted(known))}")
        return cls(**options)

    def __post_init__(self) -> None:
        if not self.losses or isinstance(self.losses, (str, Mapping)):
            raise ValueError(f"losses must be a non-empty list of terms, got {self.losses!r}")
        rule = build_rule(self.weighting)
        for name in ("memory_size", "min_history", "decay_interval"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.min_history > self.memory_size:
            raise ValueError(
                f"min_history ({self.min_history}) exceeds memory_size ({self.memory_size}), so the "
                "weights would never adapt; lower min_history or raise memory_size"
            )
        for name in ("gamma0", "decay_rate"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        if self.weight_ema is not None and not 0 <= self.weight_ema < 1:
            raise ValueError(f"weight_ema must lie in [0, 1), got {self.weight_ema!r}")
        n = len(self.losses)
        if not 0 <= self.min_weight <= 1 / n:
            raise ValueError(
                f"min_weight must lie in [0, 1/{n}] for {n} losses, got {self.min_weight!r}"
            )
        if self.prior is not None and min(self._distribution("prior", n)) == 0:
            raise ValueError(f"prior must be positive for every loss, got {list(self.prior)}")
        self._check_initial(n, learned=getattr(rule, "learned", False))

    def _check_initial(self, n: int, learned: bool) -> None:
        initial = self.initial_distribution(n)
        if learned and (self.min_weight > 0 or self.weight_ema is not None):
            raise ValueError(
                f"{self.weighting!r} weights are learned: min_weight and weight_ema do not apply"
            )
        if learned and min(initial) == 0:
            raise ValueError(
                f"initial_weights must be positive for {self.weighting!r}, got {initial}"
            )
        if self.weighting != "fixed" and min(initial) < self.min_weight - 1e-9:
            raise ValueError(
                f"initial_weights {[round(w, 4) for w in initial]} fall below "
                f"min_weight {self.min_weight}; raise them or lower min_weight"
            )

    def initial_distribution(self, n: int) -> list[float]:
        """Initial weights of ``n`` losses, normalised to sum 1."""
        return self._distribution("initial_weights", n)

    def prior_distribution(self, n: int) -> list[float]:
        """Prior of ``n`` losses, normalised to sum 1."""
        return self._distribution("prior", n)

    def _distribution(self, name: str, n: int) -> list[float]:
        values = getattr(self, name)
        if values is None:
            return [1 / n] * n
        values = [float(value) for value in values]
        if len(values) != n:
            raise ValueError(f"{name} needs {n} values, one for each loss, got {len(values)}")
        if any(not math.isfinite(v) or v < 0 for v in values) or sum(values) <= 0:
            raise ValueError(f"{name} must be finite, not negative and not all zero, got {values}")
        return [value / sum(values) for value in values]
