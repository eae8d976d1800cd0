"""From what a user writes to the modules of the terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from dmf_plugins.core.fusion import DynamicMemoryFusion
from dmf_plugins.core.spec import LossSpec, split
from dmf_plugins.losses.base import LOSSES
from dmf_plugins.losses.overlap import OverlapLoss

SHARED = ("ignore_index", "mode")  # one for all terms of a loss


class ForeignLoss(nn.Module):
    """A user's callable ``(logits, target) -> scalar`` as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.function(logits, target)


def build_term(spec: LossSpec, overlap: Mapping[str, Any]) -> tuple[str, nn.Module]:
    """Name and module of one term.

    Args:
        spec: name or dict in canonical form, or callable.
        overlap: default arguments of region terms.

    Raises:
        KeyError: the name is not in ``LOSSES``.
        TypeError: an argument the term does not take, or one that the whole loss decides.
    """
    if isinstance(spec, nn.Module) and any(
        isinstance(m, DynamicMemoryFusion) for m in spec.modules()
    ):
        raise TypeError("a DMFLoss cannot be a term of another; list its terms instead")
    if callable(spec):
        return name_of(spec), spec if isinstance(spec, nn.Module) else ForeignLoss(spec)
    name, options = split(spec)
    cls = LOSSES[name]
    for shared in SHARED:
        if shared in options:
            raise TypeError(
                f"loss {name!r}: {shared} is one for all terms; give it to the whole loss instead"
            )
    defaults = overlap if issubclass(cls, OverlapLoss) else {}
    try:
        return name, cls(**{**defaults, **options})
    except TypeError as error:
        raise TypeError(f"loss {name!r}: {error}") from error


def name_of(term: Callable[..., Any]) -> str:
    """Name of a callable term in logs."""
    return str(getattr(term, "name", getattr(term, "__name__", type(term).__name__)))


def unique_name(name: str, taken: list[str]) -> str:
    """``name``, with a number where it is taken."""
    count = 2
    unique = name
    while unique in taken:
        unique, count = f"{name}_{count}", count + 1
    return unique
