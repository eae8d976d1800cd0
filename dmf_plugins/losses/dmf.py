"""The loss most people use: terms, fusion and auxiliary term in one module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmf_plugins.core.config import DMFConfig
from dmf_plugins.core.fusion import DynamicMemoryFusion
from dmf_plugins.core.spec import LossSpec, Spec, flatten, plain, split
from dmf_plugins.core.state import Resume, compare
from dmf_plugins.losses.base import SegmentationLoss
from dmf_plugins.losses.overlap import OverlapLoss, region_losses
from dmf_plugins.losses.statistics import Mode, SegmentationStatistics, check_labels
from dmf_plugins.losses.terms import SHARED, build_term, name_of, unique_name

Batch = tuple[Tensor, Tensor, Tensor | None]


class Terms(NamedTuple):
    """Raw values of one batch.

    Attributes:
        values: ``[N]``, or ``[N + 1]`` with the auxiliary term last.
        record: whether to record them, 0-d bool; None: yes.
        extremes, classes: what :func:`~.statistics.check_labels` has yet to see, since a compiled
            graph cannot raise.
    """

    values: Tensor
    record: Tensor | None
    extremes: tuple[Tensor, ...] = ()
    classes: int = 2


class DMFLoss(nn.Module):
    """``sum_i w_i L_i + gamma(t) L_a`` (Eq. 1) for segmentation logits.

    Built-in terms share one softmax and one set of soft counts. ``train()`` records into the memory
    and moves the weights, ``eval()`` freezes both.

    Args:
        losses: base terms: names from ``LOSSES``, dicts ``{type: name, **kwargs}``, or callables
            ``(logits, target) -> scalar``.
        auxiliary: the fading term, given likewise, or None.
        ignore_index: label of the pixels left out of every built-in term.
        include_background, batch_dice, smooth: defaults for the region terms
            (:class:`~dmf_plugins.losses.overlap.OverlapLoss`); a term's own dict wins.
        mode: ``auto``, ``softmax`` or ``sigmoid``.
        persistent: keep the memory in ``state_dict()``, for a training loop that saves and loads
            the loss like any module.
        **fusion: further options of :class:`~dmf_plugins.core.DMFConfig`.

    Shape:
        - logits: ``[B, C, *spatial]``, 2-D or 3-D, any floating dtype
        - target: ``[B, *spatial]`` or ``[B, 1, *spatial]`` whole numbers, or ``[B, C, *spatial]``
          0/1 for region (sigmoid) training
        - mask: optional bool ``[B, 1, *spatial]``, False for pixels to leave out
        - output: 0-d float32 (float64 for float64 logits)

    A batch without a labelled pixel gives a zero that keeps the graph, and is not recorded.

    Attributes:
        fusion: the :class:`~dmf_plugins.core.DynamicMemoryFusion`.
        last: detached tensors of the last step, still on the device: ``terms`` ``[N]``,
            ``weights`` ``[N]``, ``gamma``, ``total``, and ``auxiliary`` where there is one.
            Empty before the first call. Of several calls per step: the mean of the terms, the sum
            of the totals.

    Raises:
        ValueError, KeyError, TypeError: an option or a term is invalid; the message says which.

    Examples:
        >>> import torch
        >>> loss = DMFLoss(losses=("ce", {"type": "tversky", "alpha": 0.3, "beta": 0.7}),
        ...                auxiliary="cb_dice", weighting="mad", ignore_index=255)
        >>> logits = torch.randn(2, 3, 16, 16, requires_grad=True)
        >>> loss(logits, torch.randint(0, 3, (2, 16, 16))).backward()
    """

    def __init__(
        self,
        losses: Sequence[LossSpec] = ("ce", "iou", "dice"),
        auxiliary: LossSpec | None = "cb_dice",
        weighting: Spec = "variance",
        *,
        ignore_index: int | None = None,
        include_background: bool = True,
        batch_dice: bool = True,
        smooth: float = 1e-5,
        mode: Mode = "auto",
        persistent: bool = False,
        **fusion: Any,
    ) -> None:
        super().__init__()
        given = {**fusion, "losses": losses, "auxiliary": auxiliary, "weighting": weighting}
        config = DMFConfig.from_dict(given)
        self.ignore_index = ignore_index
        self.mode = mode
        overlap = {
            "include_background": include_background,
            "batch_dice": batch_dice,
            "smooth": smooth,
        }
        names: list[str] = []
        self.losses = nn.ModuleList()
        for spec in config.losses:
            name, term = build_term(spec, overlap)
            names.append(unique_name(name, names))
            self.losses.append(term)
        self.auxiliary = None
        if config.auxiliary is not None:
            self.auxiliary = build_term(config.auxiliary, overlap)[1]
        self.fusion = DynamicMemoryFusion(names, config=config, persistent=persistent)
        modules = [*self.losses, self.auxiliary]
        # as built: what a term counts later is no setting
        self._options = [plain(getattr(module, "settings", {})) for module in modules]
        self.last: dict[str, Tensor] = {}
        self._step_calls: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def from_config(cls, config: DMFConfig, **options: Any) -> DMFLoss:
        """Build from a :class:`DMFConfig` and the loss options that are not part of it."""
        given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return cls(**{**given, **options})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the base terms, in the order of the weights."""
        return self.fusion.names

    @property
    def weights(self) -> Tensor:
        """Current weights, ``Tensor[N]``."""
        return self.fusion.weights

    @property
    def columns(self) -> list[str]:
        """Names of the entries of :meth:`last_row`."""
        heads = [f"{kind}_{name}" for kind in ("value", "weight") for name in self.names]
        return [*heads, "auxiliary", "gamma", "total"]

    def last_row(self) -> Tensor:
        """The last step as one float32 vector ``[2 N + 3]``, on its device, for a log.

        Terms, weights, auxiliary (NaN without one), gamma, total.
        """
        last = self.last
        missing = last["gamma"].new_full((), torch.nan)
        scalars = (last.get("auxiliary", missing), last["gamma"], last["total"])
        row = (last["terms"], last["weights"], torch.stack([s.float() for s in scalars]))
        return torch.cat([part.float() for part in row])

    def forward(
        self, logits: Tensor, target: Tensor, mask: Tensor | None = None, *, amend: bool = False
    ) -> Tensor:
        """Total loss of one batch; records it in training mode.

        ``amend`` says that the call belongs to the step of the call before, as when a network calls
        its loss several times per iteration: the step is recorded once, with the mean of its calls.
        """
        return self.fuse(self.terms(logits, target, mask), amend=amend)

    def plan(self, steps: int) -> None:
        """Tell how many steps the whole training has; needed with ``decay_end`` alone."""
        self.fusion.decay.plan(steps)

    def terms(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Terms:
        """Raw values of all terms, recorded nowhere."""
        return self.terms_of_scales([(logits, target, mask)], [1.0])

    def terms_of_scales(self, scales: Sequence[Batch], weights: Sequence[float]) -> Terms:
        """Raw values ``L_i = sum_s weights_s L_(i,s)`` of a batch at several resolutions.

        Args:
            scales: logits, target and mask (or None) of each.
            weights: one per scale.
        """
        with torch.autocast(scales[0][0].device.type, enabled=False):
            statistics = [
                SegmentationStatistics(
                    logits, target, mode=self.mode, ignore_index=self.ignore_index, mask=mask
                )
                for logits, target, mask in scales
            ]
            extremes = tuple(label for scale in statistics for label in scale.extremes)
            check_labels(extremes, statistics[0].classes)
            modules = [*self.losses, *([] if self.auxiliary is None else [self.auxiliary])]
            regions = [term for term in modules if isinstance(term, OverlapLoss)]
            of_regions = region_losses(regions, statistics, weights).unbind() if regions else ()
            found: dict[nn.Module, Tensor] = dict(zip(regions, of_regions, strict=True))
            for term in modules:
                if isinstance(term, SegmentationLoss) and term not in found:
                    found[term] = term.over_scales(statistics, weights)
        like = statistics[0].loglik
        for term in modules:
            if term not in found:  # a user's own, under the user's own autocast
                parts = [
                    w * term(*scale[:2]).to(like.dtype).reshape(())
                    for w, scale in zip(weights, scales, strict=True)
                ]
                found[term] = torch.stack(parts).sum()
        values = torch.stack([found[term] for term in modules])
        labelled = [scale.any_labelled for scale in statistics if scale.any_labelled is not None]
        record = torch.stack(labelled).any() if labelled else None
        unchecked = extremes if torch.compiler.is_compiling() else ()
        return Terms(values, record, unchecked, statistics[0].classes)

    def fuse(self, terms: Terms, *, amend: bool = False) -> Tensor:
        """Total of already computed terms; records them in training mode."""
        check_labels(terms.extremes, terms.classes)
        total, weights, gamma = self.fusion.fuse(terms.values, terms.record, amend=amend)
        call = (terms.values.detach(), total.detach())
        calls = [*self._step_calls, call] if amend else [call]
        values, done = call
        if len(calls) > 1:
            values = torch.stack([values for values, _ in calls]).mean(dim=0)
            done = torch.stack([total for _, total in calls]).sum()
        self._step_calls = calls
        n = len(self.names)
        self.last = {"terms": values[:n], "weights": weights, "gamma": gamma, "total": done}
        if len(values) > n:
            self.last["auxiliary"] = values[n]
        return total

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that changes the objective, flat, with plain values; of the terms as built."""
        config = self.fusion.config
        specs = {f"losses.{i}": spec for i, spec in enumerate(config.losses)}
        if config.auxiliary is not None:
            specs["auxiliary"] = config.auxiliary
        found: dict[str, Any] = {"auxiliary": None, **{key: getattr(self, key) for key in SHARED}}
        for (key, spec), held in zip(specs.items(), self._options, strict=False):
            options = {name: value for name, value in held.items() if name not in SHARED}
            if callable(spec):
                found |= {key: name_of(spec)} | {f"{key}.{k}": plain(v) for k, v in options.items()}
            else:
                found |= flatten(key, spec, options)
        return found | self.fusion.settings

    def describe(self) -> str:
        """The settings in one line, for a log."""
        config = self.fusion.config
        rule, options = split(config.weighting)
        extra = "".join(f", {key}={value}" for key, value in options.items())
        memory = ""
        if rule != "fixed":
            memory = (
                f" from the last {config.memory_size} steps, adapting after {config.min_history}"
            )
        auxiliary = "no auxiliary loss"
        if config.auxiliary is not None:
            name = self.settings["auxiliary"]
            auxiliary = f"auxiliary {name} x {self.fusion.decay}"
        return f"{rule}{extra} weights of {', '.join(self.names)}{memory}; {auxiliary}"

    def state_dict_dmf(self) -> dict[str, Any]:
        """Memory, weights, step and :attr:`settings`, as plain CPU tensors, numbers and strings."""
        return {**self.fusion.state_dict_dmf(), "settings": self.settings}

    def load_state_dict_dmf(self, state: Mapping[str, Any], resume: Resume = "same") -> None:
        """Continue from :meth:`state_dict_dmf`; on an error the loss is left as it was.

        Arguments and errors: :meth:`DynamicMemoryFusion.load_state_dict_dmf`; the settings of the
        terms count too.
        """
        settings = state.get("settings") if isinstance(state, Mapping) else None
        if resume == "same" and isinstance(settings, Mapping):
            compare(settings, self.settings)
        self.fusion.load_state_dict_dmf(state, resume)
