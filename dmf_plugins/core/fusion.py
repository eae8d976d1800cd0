"""Dynamic Memory Fusion: the stateful combination of several losses (Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmf_plugins.core.call import Call, mean_of, over_ranks
from dmf_plugins.core.config import DMFConfig
from dmf_plugins.core.schedule import Decay
from dmf_plugins.core.spec import flatten
from dmf_plugins.core.state import Resume, pack, unpack
from dmf_plugins.core.weighting import Rule, Window, build_rule, rule_settings


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

    A learned rule (``uncertainty``) has parameters for the optimizer, in :attr:`rule`, and its own
    total: ``sum_i exp(-log_variance_i) L_i + log_variance_i + gamma * L_a``.

    Args:
        names: names of the N terms, or N.
        persistent: keep the memory in ``state_dict()``, for a training loop that saves no more than
            that. Off, it travels by :meth:`state_dict_dmf` alone.
        config: a config that is there already, in the place of options.
        **options: fields of :class:`DMFConfig` other than ``losses`` and ``auxiliary``.

    Shape:
        - losses: ``Tensor[N]``, or a mapping of each name to a scalar tensor.
        - auxiliary: scalar tensor or None.
        - output: 0-d, of the dtype of ``losses``, at least float32.

    Raises:
        ValueError: names repeat, losses have another length or other names, or an option is invalid.

    Examples:
        >>> import torch
        >>> fusion = DynamicMemoryFusion(("ce", "dice"), weighting="mad", min_history=20)
        >>> ce, dice, tversky = torch.tensor(0.7), torch.tensor(0.4), torch.tensor(0.2)
        >>> fusion({"ce": ce, "dice": dice}, auxiliary=tversky)
        tensor(1.5500)
    """

    _history: Tensor
    _weights: Tensor
    _step: Tensor
    _skipped: Tensor
    _age: Tensor

    def __init__(
        self,
        names: Sequence[str] | int,
        *,
        persistent: bool = False,
        config: DMFConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        names = tuple(f"term{i}" for i in range(names)) if isinstance(names, int) else tuple(names)
        for reserved in ("losses", "auxiliary"):
            if reserved in options:
                raise TypeError(f"{reserved!r} is an option of DMFLoss, not of the fusion")
        if config is None:
            config = DMFConfig.from_dict({**options, "losses": names})
        if len(set(names)) != len(names):
            raise ValueError(f"names must differ from each other, got {list(names)}")
        self.names = names
        self.config = config
        self.decay = Decay(config)
        self.rule = build_rule(config.weighting)
        for owner, name, value in self._initial():
            if isinstance(value, nn.Parameter):
                owner.register_parameter(name, value)
            else:
                owner.register_buffer(name, value, persistent=persistent)
        age = torch.arange(config.memory_size, 0, -1)[:, None]
        self.register_buffer("_age", age, persistent=False)
        self._before: list[Tensor] = []
        self._calls: list[Call] = []

    def _initial(self) -> list[tuple[nn.Module, str, Tensor]]:
        """Owner, attribute and initial value of everything that is remembered."""
        n, config = len(self.names), self.config
        mine = {
            "_step": torch.zeros((), dtype=torch.int64),  # first: a memory is fitted by it
            "_history": torch.zeros(config.memory_size, n),
            "_weights": torch.tensor(config.initial_distribution(n), dtype=torch.float32),
            "_skipped": torch.zeros((), dtype=torch.int64),
        }
        rules = self.rule.initial_state(config)
        return [(self, *item) for item in mine.items()] + [
            (self.rule, *item) for item in rules.items()
        ]

    @property
    def learned(self) -> bool:
        """Whether the weights are a parameter that an optimizer must be given."""
        return next(self.rule.parameters(), None) is not None

    @property
    def weights(self) -> Tensor:
        """Current weights, ``Tensor[N]`` float32 summing to 1; a copy."""
        if not self.learned:
            return self._weights.clone()
        factors = self.rule.factors(self._weights).detach()
        return factors / factors.sum()

    @property
    def gamma(self) -> Tensor:
        """Factor the next auxiliary term gets, 0-d float32."""
        return self.decay.factor(self._step)

    @property
    def step(self) -> Tensor:
        """Number of recorded steps, 0-d int64; a copy."""
        return self._step.clone()

    @property
    def skipped(self) -> Tensor:
        """Number of steps in which a term was inf or NaN somewhere, 0-d int64; a copy."""
        return self._skipped.clone()

    def reset(self) -> None:
        """Forget everything: empty memory, initial weights, step 0."""
        self._put([value for _, _, value in self._initial()])

    @torch.inference_mode(False)
    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        """Take other values; no call that came before can be continued (``amend``)."""
        for (owner, name, _), value in zip(self._initial(), values, strict=True):
            old = getattr(owner, name)
            if isinstance(old, nn.Parameter):  # the optimizer holds it
                old.copy_(value)
            else:
                setattr(owner, name, value.detach().to(old, copy=True))
        self._before, self._calls = [], []

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any
    ) -> None:
        if any(key.startswith(prefix) for key in state_dict):  # torch copies in place
            self._put([getattr(owner, name) for owner, name, _ in self._initial()])
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DynamicMemoryFusion:
        """To another device, not to another precision: a memory in half would lose what it is for."""

        def kept(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(kept, recurse)

    def forward(
        self,
        losses: Tensor | Mapping[str, Tensor | float],
        auxiliary: Tensor | float | None = None,
        *,
        record: Tensor | None = None,
        amend: bool = False,
    ) -> Tensor:
        """Total loss of one step (Eq. 1).

        Args:
            losses: raw values of the N terms.
            auxiliary: raw value of the auxiliary term.
            record: 0-d bool tensor; False keeps this rank's values out of the memory (a batch
                without a labelled pixel). None records.
            amend: these values belong to the step of the call before (a network that calls its
                loss several times per iteration): the memory holds the mean of the calls, and step
                and gamma do not move again.
        """
        values = self._stack(losses)
        if auxiliary is not None:
            extra = torch.as_tensor(auxiliary, device=values.device).to(values.dtype)
            values = torch.cat((values, extra.reshape(1)))
        return self.fuse(values, record, amend=amend)[0]

    def fuse(
        self, values: Tensor, record: Tensor | None = None, *, amend: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total, weights ``[N]`` and gamma of one step, from ``[N]`` or, with an auxiliary term,
        ``[N + 1]`` values. Arguments: :meth:`forward`.
        """
        if amend and self.training:
            self._take_back()
        gamma = self.gamma
        if self.training:
            with torch.autocast(values.device.type, enabled=False):
                self._record(values.detach()[: len(self.names)].float(), record, amend)
        weights = self._weights
        factors = self.rule.factors(weights)
        if len(values) > len(self.names):
            factors = torch.cat((factors, gamma[None]))
        # a term of weight zero must not turn inf into NaN
        factors = factors.to(values.dtype)
        total = (factors * values.masked_fill(factors <= 0, 0.0)).sum()
        penalty = self.rule.penalty()
        if penalty is not None:
            total, weights = total + penalty, self.weights
        return total, weights, gamma

    def _stack(self, losses: Tensor | Mapping[str, Tensor | float]) -> Tensor:
        if isinstance(losses, Mapping):
            if set(losses) != set(self.names):
                raise ValueError(f"losses must be named {list(self.names)}, got {list(losses)}")
            losses = torch.stack([torch.as_tensor(losses[name]).reshape(()) for name in self.names])
        if losses.shape != (len(self.names),):
            expected = (len(self.names),)
            raise ValueError(f"losses must have shape {expected}, got {tuple(losses.shape)}")
        return losses if losses.dtype == torch.float64 else losses.float()

    @torch.no_grad()
    def _record(self, values: Tensor, record: Tensor | None, amend: bool) -> None:
        call = over_ranks(values, record)
        if amend:
            self._calls = [*self._calls, call]
            call = mean_of(self._calls)
        else:
            self._before, self._calls = self._states(), [call]
        values, usable, broken = call
        # tensors are replaced, never changed in place: what the step began with is still there
        shifted = torch.cat((self._history[1:], values[None]))
        self._history = torch.where(usable, shifted, self._history)
        self._step = self._step + usable
        self._skipped = self._skipped + broken
        if self.rule.adapts:
            self._adapt(usable)

    def _states(self) -> list[Tensor]:
        return [
            *(self._history, self._weights, self._step, self._skipped),
            *(state for state in self.rule._buffers.values() if state is not None),
        ]

    def _take_back(self) -> None:
        """Return to where the last call began."""
        if not self._calls:
            raise RuntimeError("amend=True continues a step, but no call has begun one")
        self._history, self._weights, self._step, self._skipped, *rules = self._before
        for name, value in zip(self.rule._buffers, rules, strict=True):
            setattr(self.rule, name, value)

    def _adapt(self, usable: Tensor) -> None:
        """Weights the rule draws from the memory (Eq. 3-8)."""
        config, rule = self.config, self.rule
        window = Window(self._history, self._age <= self._step, self._step)
        if type(rule).update is not Rule.update:
            self._change(usable, rule.update, window)
        score = rule(window)
        weights = score.softmax(dim=0)
        if config.min_weight > 0:
            weights = config.min_weight + (1 - len(self.names) * config.min_weight) * weights
        # scores that tell nothing make every entry NaN
        adapt = usable & (self._step >= config.min_history) & weights.eq(weights)
        if type(rule).adapted is not Rule.adapted:
            logs = score.log_softmax(dim=0) if config.min_weight == 0 else weights.log()
            self._change(adapt, rule.adapted, logs)
        if config.weight_ema is not None:
            weights = config.weight_ema * self._weights + (1 - config.weight_ema) * weights
            weights = weights / weights.sum()
        self._weights = torch.where(adapt, weights, self._weights)

    def _change(self, kept: Tensor, change: Callable[[Any], None], note: Any) -> None:
        """Let the rule change its state, and take that back where ``kept`` is False."""
        before = {name: state for name, state in self.rule._buffers.items() if state is not None}
        change(note)
        for name, old in before.items():
            setattr(self.rule, name, torch.where(kept, getattr(self.rule, name), old))

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of the fusion, flat, with plain values."""
        config, n = self.config, len(self.names)
        names = ("memory_size", "min_history", "min_weight", "weight_ema")
        return {
            **flatten("weighting", config.weighting, rule_settings(config.weighting)),
            **{name: getattr(config, name) for name in names},
            **self.decay.settings,
            "initial_weights": config.initial_distribution(n),
            "prior": config.prior_distribution(n),
        }

    def state_dict_dmf(self) -> dict[str, Any]:
        """Everything needed to continue bit-exactly, as plain CPU tensors, numbers and strings."""
        tensors = {name.lstrip("_"): getattr(owner, name) for owner, name, _ in self._initial()}
        return pack(self.names, self.settings, tensors)

    def load_state_dict_dmf(self, state: Mapping[str, Any], resume: Resume = "same") -> None:
        """Continue from :meth:`state_dict_dmf`; on an error the fusion is left as it was.

        Args:
            state: the saved state; also one of version 0.1.0.
            resume: ``same`` refuses a state of other settings; ``new`` takes memory, step and weights
                and goes on with the settings of this fusion.

        Raises:
            SettingsDiffer: a setting has another value; the message names each with both.
            ValueError: the state is of another version or other terms, lacks an entry, or holds
                values that no training leaves, such as a loss that is not finite.
        """
        initial = {name.lstrip("_"): value for _, name, value in self._initial()}
        tensors = unpack(state, self.names, self.settings, initial, resume)
        self._put([tensors[name] for name in initial])

    def extra_repr(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"names={self.names}, {settings}"
