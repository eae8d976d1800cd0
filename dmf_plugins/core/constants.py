"""Small constant tensors, made once per device: a fresh one would stop a GPU to be copied there."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def constant(values: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers (a number, or nested tuples) as a tensor of the device and dtype of ``like``."""
    if torch.compiler.is_compiling():  # the compiler keeps constants itself
        return torch.tensor(values, dtype=dtype or like.dtype, device=like.device)
    return _make(values, dtype or like.dtype, like.device)


@functools.lru_cache(maxsize=1024)
def _make(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
