"""DMFLoss behind MMSegmentation's loss contract."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmseg.registry import MODELS
from torch import Tensor, nn

from dmf_plugins.core.spec import LossSpec, Spec
from dmf_plugins.losses import LOSSES
from dmf_plugins.losses import DMFLoss as PlainDMFLoss
from dmf_plugins.registry import did_you_mean

HOOK_ADVICE = "add custom_hooks=[dict(type='DMFHook')] to the config"
# options of mmseg's losses, which a dict merged over a base config's loss leaves behind
_LEFTOVERS = {"activate", "alpha", "avg_non_ignore", "beta", "class_weight", "classes", "eps"}
_LEFTOVERS |= {"gamma", "ignore_label", "loss_type", "min_kept", "naive_dice", "per_image"}
_LEFTOVERS |= {"reduction", "thres", "thresh", "use_mask"}


class RegisteredTerm(nn.Module):
    """A loss of mmseg's own registry as a term; gets the labels and ignore_index of the head."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = MODELS.build(dict(spec))
        self.name = type(self.module).__name__
        self.settings = {key: value for key, value in spec.items() if key != "type"}
        parameters = inspect.signature(self.module.forward).parameters
        self._takes_ignore = "ignore_index" in parameters or any(
            p.kind is p.VAR_KEYWORD for p in parameters.values()
        )
        self.labels: Tensor | None = None
        self.ignore_index: int | None = None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        labels = target if self.labels is None else self.labels
        if self._takes_ignore and self.ignore_index is not None:
            return self.module(logits, labels, ignore_index=self.ignore_index)
        return self.module(logits, labels)


@MODELS.register_module(name="DMFLoss")
class MMSegDMFLoss(nn.Module):
    """Dynamic Memory Fusion as the ``loss_decode`` of any MMSegmentation head, type ``DMFLoss``.

    Each head has an instance, hence a memory, of its own. Needs ``DMFHook`` in ``custom_hooks``,
    which puts the memory into checkpoints, the weights into the log, and makes one step of all the
    calls between two updates of the optimizer.

    Args:
        losses: base terms: names from :data:`dmf_plugins.LOSSES`, dicts ``dict(type=name, ...)``
            with such a name or any loss of mmseg's registry, e.g. ``dict(type='LovaszLoss',
            reduction='none')``.
        auxiliary: the fading term, given likewise, or None.
        weighting: rule, see :class:`dmf_plugins.DMFConfig`.
        loss_weight: factor of the total, as for mmseg's losses (0.4 is usual for auxiliary heads).
        loss_name: key in the log; must begin with ``loss_`` to be part of the objective.
        use_sigmoid: True reads several channels as independent, each class against the rest; None
            or False decides by the number of channels (one channel is always binary).
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
        terms = losses if isinstance(losses, (str, Mapping)) else [resolve(s) for s in losses]
        auxiliary = resolve(auxiliary) if auxiliary else auxiliary
        self.loss = PlainDMFLoss(terms, auxiliary, weighting, **options)
        self._registered = [m for m in self.modules() if isinstance(m, RegisteredTerm)]
        self.loss_weight = loss_weight
        self.loss_name = loss_name
        self.hooked = False
        self.calls = 0
        self._first_iter: int | None = None

    @property
    def dmf(self) -> PlainDMFLoss:
        """Earlier name of :attr:`loss`."""
        return self.loss

    def begin_step(self) -> None:
        """What is called from here on is one step, until the next :meth:`begin_step`."""
        self.calls = 0

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
                f"DMFLoss gives one number per batch and cannot honour {', '.join(unsupported)}; "
                "with OHEMPixelSampler set thresh, or drop the sampler"
            )
        if weight is not None:
            ignore_index = 255 if ignore_index is None else ignore_index
            seg_label = torch.where(weight > 0, seg_label, ignore_index)
        mask = None if ignore_index is None else (seg_label != ignore_index)[:, None]
        for term in self._registered:
            term.labels, term.ignore_index = seg_label, ignore_index
        if self.training and not self.hooked:
            self._require_hook()
        amend = self.training and self.hooked and self.calls > 0
        total = self.loss(seg_logits, self._target(seg_logits, seg_label), mask, amend=amend)
        self.calls += self.training
        return self.loss_weight * total

    def _target(self, logits: Tensor, label: Tensor) -> Tensor:
        """The label, or one channel per class where the channels are independent."""
        channels = logits.shape[1]
        if self.loss.mode != "sigmoid" or channels == 1:
            return label
        classes = torch.arange(channels, device=label.device)
        return label[:, None] == classes.view(-1, *[1] * (label.ndim - 1))

    def _require_hook(self) -> None:
        """Raise if a Runner drives the training (its iteration moves) and no hook has claimed us."""
        now = MessageHub.get_current_instance().get_info("iter", -1)
        if self._first_iter is None:
            self._first_iter = now
        elif now != self._first_iter:
            raise RuntimeError(
                f"DMFLoss without DMFHook: its memory would not be saved or logged; {HOOK_ADVICE}"
            )


DMFLoss = MMSegDMFLoss


def resolve(spec: LossSpec) -> LossSpec:
    """Our own terms unchanged (by name, where given as a class), losses of mmseg's registry built."""
    if not isinstance(spec, (str, Mapping)):
        return spec
    options = {"type": spec} if isinstance(spec, str) else dict(spec)
    kind = options.get("type")
    name = next((name for name, entry in LOSSES.items() if kind is entry), kind)
    if name is None or name in LOSSES:
        return {**options, "type": name} if isinstance(kind, type) else spec
    if not isinstance(kind, type) and MODELS.get(str(kind)) is None:
        known = [*LOSSES, *(key for key in MODELS.module_dict if key.endswith("Loss"))]
        raise KeyError(f"unknown loss {kind!r}: {did_you_mean(str(kind), known)}")
    return RegisteredTerm(options)
