"""DMFLoss behind MMSegmentation's loss contract."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import MessageHub
from mmseg.registry import MODELS
from torch import Tensor, nn

from dmf_plugins.core.spec import LossSpec, Spec
from dmf_plugins.losses import LOSSES
from dmf_plugins.losses import DMFLoss as PlainDMFLoss
from dmf_plugins.registry import did_you_mean

HOOK_ADVICE = "add custom_hooks=[dict(type='DMFHook')] to the config"
# what a config's CrossEntropyLoss leaves behind when a dict is merged over it
_LEFTOVERS = {"class_weight", "reduction", "use_mask", "avg_non_ignore", "thresh", "min_kept"}


class RegisteredTerm(nn.Module):
    """A loss of mmseg's own registry as a term; takes the ignore_index of the head."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = MODELS.build(dict(spec))
        self.name = str(spec["type"]).rpartition(".")[2]
        parameters = inspect.signature(self.module.forward).parameters
        self._takes_ignore = "ignore_index" in parameters or any(
            p.kind is p.VAR_KEYWORD for p in parameters.values()
        )
        self.ignore_index: int | None = None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if self._takes_ignore and self.ignore_index is not None:
            return self.module(logits, target, ignore_index=self.ignore_index)
        return self.module(logits, target)


@MODELS.register_module()
class DMFLoss(nn.Module):
    """Dynamic Memory Fusion as the ``loss_decode`` of any MMSegmentation head.

    Each head has an instance, hence a memory, of its own. Needs ``DMFHook`` in ``custom_hooks``,
    which puts the memory into checkpoints and the weights into the log. With gradient accumulation
    every micro-batch is one record.

    Args:
        losses: base terms: names from :data:`dmf_plugins.LOSSES`, dicts ``dict(type=name, ...)``
            with such a name or any loss of mmseg's registry, e.g. ``dict(type='LovaszLoss',
            reduction='none')``.
        auxiliary: the fading term, given likewise, or None.
        weighting: rule, see :class:`dmf_plugins.DMFConfig`.
        loss_weight: factor of the total, as for mmseg's losses (0.4 is usual for auxiliary heads).
        loss_name: key in the log; must begin with ``loss_`` to be part of the objective.
        use_sigmoid: True reads several channels as independent; None or False decides by the number
            of channels (one channel is always binary).
        **options: further options of :class:`dmf_plugins.DMFLoss`.

    Shape:
        - seg_logits: ``[B, C, H, W]``, or ``[B, 1, H, W]`` for a head with ``out_channels=1``
        - seg_label: ``[B, H, W]`` whole numbers

    Raises:
        TypeError: an option is unknown, such as one merged from a base config's loss.
        ValueError: ``loss_name`` does not begin with ``loss_``.
        RuntimeError: a Runner trains without ``DMFHook``.
    """

    def __init__(
        self,
        losses: Sequence[LossSpec] = ("ce", "iou", "dice"),
        auxiliary: LossSpec | None = "cb_dice",
        weighting: Spec = "variance",
        *,
        loss_weight: float = 1.0,
        loss_name: str = "loss_dmf",
        use_sigmoid: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not loss_name.startswith("loss_"):
            raise ValueError(f"loss_name must begin with 'loss_', got {loss_name!r}")
        leftovers = sorted(_LEFTOVERS & options.keys())
        if leftovers:
            raise TypeError(
                f"DMFLoss does not take {', '.join(leftovers)}: merged from the base config's loss? "
                "Write loss_decode=dict(_delete_=True, type='DMFLoss', ...)"
            )
        if use_sigmoid:
            options["mode"] = "sigmoid"
        self.dmf = PlainDMFLoss(
            [resolve(spec) for spec in losses],
            None if auxiliary is None else resolve(auxiliary),
            weighting,
            **options,
        )
        self.loss_weight = loss_weight
        self._loss_name = loss_name
        self.hooked = False
        self._first_iter: int | None = None

    @property
    def loss_name(self) -> str:
        """Key of the total in the head's losses."""
        return self._loss_name

    def forward(
        self,
        seg_logits: Tensor,
        seg_label: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
        **kwargs: Any,
    ) -> Tensor:
        """Total loss times ``loss_weight``; recorded in training mode.

        Args:
            seg_logits, seg_label: see the class.
            weight: ``[B, H, W]`` from a pixel sampler; pixels of weight 0 are left out.
            ignore_index: label left out.
            **kwargs: ``avg_factor`` and the like, which a DMF total cannot honour, must be None.
        """
        unsupported = sorted(key for key, value in kwargs.items() if value is not None)
        if unsupported:
            raise NotImplementedError(
                f"DMFLoss gives one number a batch and cannot honour {', '.join(unsupported)}; "
                "with OHEMPixelSampler set thresh, or drop the sampler"
            )
        if self.training and not self.hooked:
            self._require_hook()
        mask = None if ignore_index is None else (seg_label != ignore_index)[:, None]
        if weight is not None:
            sampled = (weight > 0)[:, None]
            mask = sampled if mask is None else mask & sampled
        for term in self.modules():
            if isinstance(term, RegisteredTerm):
                term.ignore_index = ignore_index
        return self.loss_weight * self.dmf(seg_logits, seg_label, mask)

    def _require_hook(self) -> None:
        """Raise if a Runner drives the training (its iteration moves) and no hook has claimed us."""
        now = MessageHub.get_current_instance().get_info("iter", -1)
        if self._first_iter is None:
            self._first_iter = now
        elif now != self._first_iter:
            raise RuntimeError(
                f"DMFLoss without DMFHook: its memory would not be saved or logged; {HOOK_ADVICE}"
            )


def resolve(spec: LossSpec) -> LossSpec:
    """Our own terms unchanged, losses of mmseg's registry built."""
    if callable(spec):
        return spec
    options = {"type": spec} if isinstance(spec, str) else dict(spec)
    name = options.get("type")
    if name is None or name in LOSSES:
        return spec
    if MODELS.get(name) is None:
        known = [*LOSSES, *(key for key in MODELS.module_dict if key.endswith("Loss"))]
        raise KeyError(f"unknown loss {name!r}: {did_you_mean(str(name), known)}")
    return RegisteredTerm(options)
