"""The loss most people use: terms, fusion and auxiliary term in one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmf_plugins.core.config import DMFConfig, LossSpec
from dmf_plugins.core.fusion import DynamicMemoryFusion
from dmf_plugins.core.weighting import WeightingSpec
from dmf_plugins.losses.base import LOSSES, SegmentationLoss
from dmf_plugins.losses.overlap import OverlapLoss
from dmf_plugins.losses.statistics import Mode, SegmentationStatistics


class ForeignLoss(nn.Module):
    """A user's callable ``(logits, target) -> scalar`` as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.function(logits, target)


class Terms(NamedTuple):
    """Raw values of one batch: base terms ``[N]``, auxiliary 0-d or None, whether to record."""

    values: Tensor
    auxiliary: Tensor | None
    record: Tensor | None


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
        last: detached tensors of the last call, still on the device: ``terms`` ``[N]``,
            ``weights`` ``[N]``, ``gamma``, ``total``, and ``auxiliary`` where there is one.
            Empty before the first call.

    Raises:
        ValueError, KeyError, TypeError: an option or a term is invalid; the message says which.

    Example:
        >>> loss = DMFLoss(losses=("ce", {"type": "tversky", "alpha": 0.3, "beta": 0.7}),
        ...                auxiliary="cb_dice", weighting="mad", ignore_index=255)
        >>> loss(logits, target).backward()
    """

    def __init__(
        self,
        losses: Sequence[LossSpec] = ("ce", "iou", "dice"),
        auxiliary: LossSpec | None = "cb_dice",
        weighting: WeightingSpec = "variance",
        *,
        ignore_index: int | None = None,
        include_background: bool = True,
        batch_dice: bool = True,
        smooth: float = 1e-5,
        mode: Mode = "auto",
        **fusion: Any,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.mode = mode
        DMFConfig.from_dict(
            {**fusion, "losses": losses, "auxiliary": auxiliary, "weighting": weighting}
        )
        overlap = {
            "include_background": include_background,
            "batch_dice": batch_dice,
            "smooth": smooth,
        }
        names: list[str] = []
        self.losses = nn.ModuleList()
        for spec in losses:
            name, term = build_term(spec, overlap)
            names.append(_unique(name, names))
            self.losses.append(term)
        self.auxiliary = None if auxiliary is None else build_term(auxiliary, overlap)[1]
        self.fusion = DynamicMemoryFusion(names, weighting=weighting, **fusion)
        self.last: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, config: DMFConfig, **options: Any) -> DMFLoss:
        """Build from a :class:`DMFConfig` and the loss options that are not part of it."""
        return cls(**{**vars(config), **options})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the base terms, in the order of the weights."""
        return self.fusion.names

    @property
    def weights(self) -> Tensor:
        """Current weights, ``Tensor[N]``."""
        return self.fusion.weights

    def last_row(self) -> Tensor:
        """The last call as one float32 vector ``[2 N + 3]``, on its device, for a log.

        Terms, weights, auxiliary (NaN without one), gamma, total.
        """
        last = self.last
        missing = last["gamma"].new_full((), torch.nan)
        scalars = (last.get("auxiliary", missing), last["gamma"], last["total"])
        row = (last["terms"], last["weights"], torch.stack([s.float() for s in scalars]))
        return torch.cat([part.float() for part in row])

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Total loss of one batch; records it in training mode."""
        return self.fuse(self.terms(logits, target, mask))

    def terms(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Terms:
        """Raw values of all terms, recorded nowhere."""
        statistics = SegmentationStatistics(
            logits, target, mode=self.mode, ignore_index=self.ignore_index, mask=mask
        )

        def value(term: nn.Module) -> Tensor:
            if isinstance(term, SegmentationLoss):
                return term.compute(statistics)
            return term(logits, target).to(statistics.logits.dtype).reshape(())

        values = torch.stack([value(term) for term in self.losses])
        auxiliary = None if self.auxiliary is None else value(self.auxiliary)
        return Terms(values, auxiliary, statistics.any_labelled)

    def fuse(self, terms: Terms) -> Tensor:
        """Total of already computed terms; records them in training mode."""
        gamma = self.fusion.gamma
        total = self.fusion(terms.values, terms.auxiliary, record=terms.record)
        self.last = {
            "terms": terms.values.detach(),
            "weights": self.fusion.weights,
            "gamma": gamma,
            "total": total.detach(),
        }
        if terms.auxiliary is not None:
            self.last["auxiliary"] = terms.auxiliary.detach()
        return total


def build_term(spec: LossSpec, overlap: Mapping[str, Any]) -> tuple[str, nn.Module]:
    """Name and module of one term.

    Args:
        spec: name, dict with ``type``, or callable.
        overlap: default arguments of region terms.

    Raises:
        KeyError: the name is not in ``LOSSES``.
        TypeError: the dict has no ``type`` or an argument the term does not take.
    """
    if callable(spec):
        name = str(getattr(spec, "name", getattr(spec, "__name__", type(spec).__name__)))
        return name, spec if isinstance(spec, nn.Module) else ForeignLoss(spec)
    options = {"type": spec} if isinstance(spec, str) else dict(spec)
    if "type" not in options:
        raise TypeError(f"a loss given as a dict needs a 'type', got {spec!r}")
    name = options.pop("type")
    cls = LOSSES[name]
    defaults = overlap if issubclass(cls, OverlapLoss) else {}
    try:
        return name, cls(**{**defaults, **options})
    except TypeError as error:
        raise TypeError(f"loss {name!r}: {error}") from error


def _unique(name: str, taken: list[str]) -> str:
    count = 2
    unique = name
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    return unique
