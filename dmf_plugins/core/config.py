"""Validated settings of the fusion and of the loss built around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dmf_plugins.core.spec import LossSpec, Spec, canonical
from dmf_plugins.core.weighting import check_rule
from dmf_plugins.registry import did_you_mean


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
        decay_end: in place of ``decay_rate`` and ``decay_interval``, the share of the planned training
            after which the factor of the auxiliary term is 1 % of ``gamma0``; needs
            :meth:`~dmf_plugins.losses.DMFLoss.plan`, which both frameworks' adapters call.
        min_weight: lower bound of every adapted weight, ``w <- min_weight + (1 - N min_weight) w``.
        weight_ema: beta of ``w_t <- beta * w_(t-1) + (1 - beta) * w``; None is no smoothing.

    A dict without options is stored as its name: ``{"type": "mad"}`` is ``"mad"``.

    Raises:
        ValueError: a value is out of range, or two settings contradict each other.
        KeyError: ``weighting`` is not registered.
        TypeError: a term or rule is given as something else than the above, or an option given to
            :meth:`from_dict` or to the rule does not exist.
    """

    losses: Sequence[LossSpec] = ("ce", "iou", "dice")
    auxiliary: LossSpec | None = "cb_dice"
    weighting: Spec = "variance"
    memory_size: int = 150
    min_history: int = 50
    initial_weights: Sequence[float] | None = None
    prior: Sequence[float] | None = None
    gamma0: float = 5.0
    decay_rate: float = 0.05
    decay_interval: int = 100
    decay_end: float | None = None
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
        self._set("losses", canonical_losses(self.losses))
        if self.auxiliary is not None:
            self._set("auxiliary", _term(self.auxiliary))
        self._set("weighting", canonical(self.weighting, "weighting"))
        check_rule(self.weighting)
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
            value = self._number(name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        if self.decay_end is not None and not 0 < self._number("decay_end") < math.inf:
            raise ValueError(f"decay_end must be positive and finite, got {self.decay_end!r}")
        self._check_weights(len(self.losses))

    def _check_weights(self, n: int) -> None:
        if self.weight_ema is not None and not 0 <= self._number("weight_ema") < 1:
            raise ValueError(f"weight_ema must lie in [0, 1), got {self.weight_ema!r}")
        if not 0 <= self._number("min_weight") <= 1 / n:
            raise ValueError(
                f"min_weight must lie in [0, 1/{n}] for {n} losses, got {self.min_weight!r}"
            )
        if min(self.prior_distribution(n)) == 0:
            raise ValueError(f"prior must be positive for every loss, got {self.prior}")
        initial = self.initial_distribution(n)
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

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {value!r}")
        return value

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def canonical_losses(losses: object) -> tuple[LossSpec, ...]:
    """A list of terms in canonical form.

    Raises:
        ValueError: it is empty or no list.
        TypeError: an entry is no term.
    """
    if isinstance(losses, (str, Mapping)) or not isinstance(losses, Sequence) or not losses:
        raise ValueError(
            f"losses must be a non-empty list of terms, such as ['ce', 'dice']; got {losses!r}"
        )
    return tuple(_term(spec) for spec in losses)


def _term(spec: object) -> LossSpec:
    if isinstance(spec, type):
        raise TypeError(f"a loss given as a class must be made first: {spec.__name__}(...)")
    return spec if callable(spec) else canonical(spec, "loss")
