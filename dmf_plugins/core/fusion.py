"""Dynamic Memory Fusion: the stateful combination of several losses (Eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmf_plugins.core.config import DMFConfig
from dmf_plugins.core.schedule import auxiliary_factor
from dmf_plugins.core.weighting import CarryingRule, Window, build_rule

STATE_VERSION = 1


@dataclass(frozen=True)
class StateField:
    """One buffer of the fusion: its value after :meth:`DynamicMemoryFusion.reset`.

    Every field is equal on all ranks by construction (it is computed from the all-reduced losses),
    so none needs a reduction when a checkpoint is written.
    """

    name: str
    reset: Tensor


class DynamicMemoryFusion(nn.Module):
    """Weights several losses by the memory of their recent values and adds a fading auxiliary loss.

    One call in training mode: append the values to the memory, recompute the weights if at least
    ``min_history`` steps are recorded, return ``sum_i w_i L_i + gamma * L_a``, count the step. In
    eval mode nothing is recorded and weights and gamma stand still. Weights are constants to
    autograd. There is no host-device synchronisation and no data-dependent branch, so a call
    works under ``torch.compile(fullgraph=True)``.

    A step in which any term is inf or NaN is not recorded, leaves the weights alone and is counted
    in :attr:`skipped`; its total is still returned. Under ``torch.distributed`` the recorded values
    are the mean over the ranks whose values are usable, so the weights are equal on every rank.

    A learned rule (``uncertainty``) has a parameter ``log_variance`` ``[N]`` for the optimizer, and its
    own total: ``sum_i exp(-log_variance_i) L_i + log_variance_i + gamma * L_a``.

    Args:
        names: names of the N terms, or N.
        **options: fields of :class:`DMFConfig` other than ``losses`` and ``auxiliary``.

    Shape:
        - losses: ``Tensor[N]``, or a mapping of each name to a scalar tensor.
        - auxiliary: scalar tensor or None.
        - output: 0-d, of the dtype of ``losses``, at least float32.

    Raises:
        ValueError: names repeat, losses have another length or other names, or an option is invalid.

    Example:
        >>> fusion = DynamicMemoryFusion(("ce", "dice"), weighting="mad", min_history=20)
        >>> total = fusion({"ce": ce, "dice": dice}, auxiliary=tversky)
    """

    def __init__(self, names: Sequence[str] | int, **options: Any) -> None:
        super().__init__()
        if isinstance(names, int):
            names = tuple(f"term{i}" for i in range(names))
        self.names = tuple(names)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"names must differ from each other, got {list(self.names)}")
        for reserved in ("losses", "auxiliary"):
            if reserved in options:
                raise TypeError(f"{reserved!r} is an option of DMFLoss, not of the fusion")
        self.config = DMFConfig.from_dict({**options, "losses": self.names})
        self._rule = build_rule(self.config.weighting)
        self.log_variance: nn.Parameter | None = None
        for field in self._state_fields():
            if field.name == "log_variance":
                self.log_variance = nn.Parameter(field.reset)
            else:
                self.register_buffer(field.name, field.reset, persistent=False)

    @property
    def learned(self) -> bool:
        """Whether the weights are a parameter that an optimizer must be given."""
        return getattr(self._rule, "learned", False)

    def _state_fields(self) -> list[StateField]:
        n, config = len(self.names), self.config
        initial = torch.tensor(config.initial_distribution(n), dtype=torch.float32)
        prior = torch.tensor(config.prior_distribution(n), dtype=torch.float32)
        fields = [
            StateField("_history", torch.zeros(config.memory_size, n)),
            StateField("_weights", initial),
            StateField("_log_prior", prior.log()),
            StateField("_step", torch.zeros((), dtype=torch.int64)),
            StateField("_skipped", torch.zeros((), dtype=torch.int64)),
        ]
        if isinstance(self._rule, CarryingRule):
            fields.append(StateField("_carry", torch.zeros(self._rule.carry_rows, n)))
        if self.learned:
            # equal weights start at factor 1, as in Kendall's total
            fields.append(StateField("log_variance", -(n * initial).log()))
        return fields

    _history: Tensor
    _weights: Tensor
    _log_prior: Tensor
    _step: Tensor
    _skipped: Tensor
    _carry: Tensor

    @property
    def weights(self) -> Tensor:
        """Current weights, ``Tensor[N]`` float32 summing to 1; a copy."""
        if self.log_variance is not None:
            return (-self.log_variance.detach()).softmax(dim=0)
        return self._weights.clone()

    @property
    def gamma(self) -> Tensor:
        """Factor the next auxiliary term gets, 0-d float32."""
        config = self.config
        return auxiliary_factor(self._step, config.gamma0, config.decay_rate, config.decay_interval)

    @property
    def step(self) -> Tensor:
        """Number of recorded steps, 0-d int64; a copy."""
        return self._step.clone()

    @property
    def skipped(self) -> Tensor:
        """Number of steps not recorded because a term was inf or NaN, 0-d int64; a copy."""
        return self._skipped.clone()

    def reset(self) -> None:
        """Forget everything: empty memory, initial weights, step 0."""
        with torch.no_grad():
            for field in self._state_fields():
                getattr(self, field.name).copy_(field.reset)

    def forward(
        self,
        losses: Tensor | Mapping[str, Tensor | float],
        auxiliary: Tensor | float | None = None,
        *,
        record: Tensor | None = None,
    ) -> Tensor:
        """Total loss of one step (Eq. 1).

        Args:
            losses: raw values of the N terms.
            auxiliary: raw value of the auxiliary term.
            record: 0-d bool tensor; False keeps this rank's values out of the memory (a batch
                without a labelled pixel). None records.
        """
        values = self._stack(losses)
        gamma = self.gamma
        if self.training:
            self._record(values.detach(), record)
        if self.log_variance is None:
            factors = self._weights.clone().to(values.dtype)
        else:
            factors = (-self.log_variance).exp().to(values.dtype)
        # a term of weight zero must not turn inf into NaN
        total = torch.where(factors > 0, factors * values, 0.0).sum()
        if self.log_variance is not None:
            total = total + self.log_variance.sum()
        if auxiliary is not None:
            total = total + gamma.to(values.dtype) * torch.as_tensor(auxiliary).reshape(())
        return total

    def _stack(self, losses: Tensor | Mapping[str, Tensor | float]) -> Tensor:
        if isinstance(losses, Mapping):
            if set(losses) != set(self.names):
                raise ValueError(f"losses must be named {list(self.names)}, got {list(losses)}")
            losses = torch.stack([torch.as_tensor(losses[name]).reshape(()) for name in self.names])
        if losses.shape != (len(self.names),):
            raise ValueError(
                f"losses must have shape ({len(self.names)},), got {tuple(losses.shape)}"
            )
        return losses if losses.dtype == torch.float64 else losses.float()

    @torch.no_grad()
    def _record(self, values: Tensor, record: Tensor | None) -> None:
        values, usable, broken = self._reduce(values.float(), record)
        shifted = torch.cat((self._history[1:], values[None]))
        self._history.copy_(torch.where(usable, shifted, self._history))
        step = self._step + usable
        carry = None
        if isinstance(self._rule, CarryingRule):
            carry = torch.where(
                usable, self._rule.update(self._window(step, self._carry)), self._carry
            )
            self._carry.copy_(carry)
        weights, log_prior = self._adapt(self._window(step, carry))
        self._weights.copy_(torch.where(usable, weights, self._weights))
        self._log_prior.copy_(torch.where(usable, log_prior, self._log_prior))
        self._step.copy_(step)
        self._skipped.add_(broken)

    def _reduce(self, values: Tensor, record: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean over ranks, whether to record it, and whether some rank was not finite."""
        finite = values.isfinite().all()
        wanted = torch.ones_like(finite) if record is None else record.to(finite)
        usable, broken = finite & wanted, ~finite & wanted
        values = torch.where(usable, values, 0.0)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # every rank always takes part, whatever its batch held, so that none can wait alone
            message = torch.cat((values, torch.stack((usable, broken)).to(values)))
            dist.all_reduce(message)
            values = message[:-2] / message[-2].clamp_min(1)
            usable, broken = message[-2] > 0, message[-1] > 0
        return values, usable, broken

    def _window(self, step: Tensor, carry: Tensor | None) -> Window:
        """The memory after ``step`` recorded steps, as a rule sees it."""
        age = torch.arange(self.config.memory_size, 0, -1, device=step.device)
        return Window(self._history, (age <= step)[:, None], self._log_prior, step, carry)

    def _adapt(self, window: Window) -> tuple[Tensor, Tensor]:
        """Weights and log posterior the rule draws from the memory (Eq. 3-8)."""
        config = self.config
        score = self._rule(window)
        posterior = score.log_softmax(dim=0)
        weights = posterior.exp()
        if config.min_weight > 0:
            weights = config.min_weight + (1 - len(self.names) * config.min_weight) * weights
            posterior = weights.log()
        if config.weight_ema is not None:
            weights = config.weight_ema * self._weights + (1 - config.weight_ema) * weights
        adapt = (window.steps() >= config.min_history) & weights.isfinite().all()
        return (
            torch.where(adapt, weights / weights.sum(), self._weights),
            torch.where(adapt, posterior, self._log_prior),
        )

    def state_dict_dmf(self) -> dict[str, Any]:
        """Everything needed to continue bit-exactly, as plain CPU tensors, numbers and strings."""
        state = {
            field.name.lstrip("_"): getattr(self, field.name).detach().cpu().clone()
            for field in self._state_fields()
        }
        return {
            "version": STATE_VERSION,
            "names": list(self.names),
            "weighting": self._weighting,
            **state,
        }

    def load_state_dict_dmf(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict_dmf`; on an error the fusion is left as it was.

        Raises:
            ValueError: the state is of another version, rule, memory size, number or order of
                terms, lacks an entry, or holds values that are not finite.
        """
        if not isinstance(state, Mapping) or state.get("version") != STATE_VERSION:
            raise ValueError(f"not a DMF state of version {STATE_VERSION}: {_summary(state)}")
        for key, mine in (("names", list(self.names)), ("weighting", self._weighting)):
            if state.get(key) != mine:
                raise ValueError(
                    f"the DMF state was saved with {key}={state.get(key)!r}, this fusion has {mine!r}; "
                    "use the settings of the saved run, or reset() to start afresh"
                )
        loaded = {}
        for field in self._state_fields():
            key = field.name.lstrip("_")
            value = state.get(key)
            if not isinstance(value, Tensor) or value.dtype != field.reset.dtype:
                raise ValueError(f"the DMF state lacks {key!r} as a {field.reset.dtype} tensor")
            if value.shape != field.reset.shape:
                raise ValueError(
                    f"the DMF state has {key} of shape {tuple(value.shape)}, this fusion "
                    f"{tuple(field.reset.shape)} (memory_size={self.config.memory_size}, "
                    f"{len(self.names)} losses); use the settings of the saved run, or reset()"
                )
            if value.isnan().any():
                raise ValueError(f"the DMF state holds NaN in {key}")
            loaded[field.name] = value
        with torch.no_grad():
            for name, value in loaded.items():
                getattr(self, name).copy_(value)

    @property
    def _weighting(self) -> str | dict[str, Any]:
        """The rule's name, or its dict, as plain data for a checkpoint."""
        spec = self.config.weighting
        return spec if isinstance(spec, str) else dict(spec)

    def extra_repr(self) -> str:
        config = self.config
        parts = [
            f"names={self.names}, weighting={self._weighting!r}",
            f"memory_size={config.memory_size}, min_history={config.min_history}",
            f"gamma0={config.gamma0}, decay_rate={config.decay_rate}",
            f"decay_interval={config.decay_interval}",
        ]
        if config.min_weight > 0:
            parts.append(f"min_weight={config.min_weight}")
        if config.weight_ema is not None:
            parts.append(f"weight_ema={config.weight_ema}")
        return ", ".join(parts)


def _summary(state: object) -> str:
    return (
        f"keys {sorted(map(str, state))[:8]}"
        if isinstance(state, Mapping)
        else f"a {type(state).__name__}"
    )
