"""mmengine's log in checkpoints, so that torch's safe loading takes them."""

from __future__ import annotations

import copyreg
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_SCALAR: Any = np.float64().__reduce__()[0]
_KINDS: list[Any] = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]


def _reduce(buffer: HistoryBuffer) -> tuple[type, tuple[list[float], list[int], int]]:
    log, count = buffer.data
    return HistoryBuffer, (log.tolist(), count.tolist(), buffer.max_length)


copyreg.pickle(HistoryBuffer, _reduce)


def allow_log() -> None:
    """Let ``torch.load(weights_only=True)`` read the log that mmengine keeps in every checkpoint.

    Its usual pickle calls ``getattr``; torch >= 2.6 rightly refuses that, and ``--resume`` fails.
    Pickled by ``_reduce``, as its constructor and plain numbers, it is harmless and is allowed, with numpy's
    numbers such as a best score; all else stays as guarded as torch has it. To be called again after
    code that takes such permissions back (onedl-mmengine's loading does).
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([HistoryBuffer, _SCALAR, np.dtype, *_KINDS])
