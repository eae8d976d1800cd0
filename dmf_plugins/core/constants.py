"""Small constant tensors, made once per device: a fresh one would stop a GPU to be copied there."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def traced(tensor: Tensor) -> bool:
    """Whether operations are only written down: by the compiler, or on tensors without data."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)


def constant(values: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers (a number, or nested tuples) as a tensor of the device and dtype of ``like``."""
    if traced(like):  # kept by whoever traces, and of no use outside
        return torch.tensor(values, dtype=dtype or like.dtype, device=like.device)
    return _make(values, dtype or like.dtype, like.device)


@functools.lru_cache(maxsize=1024)
def _make(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
