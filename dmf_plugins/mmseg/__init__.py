"""MMSegmentation plug-in; importing it registers everything.

In a config: ``custom_imports = dict(imports=['dmf_plugins.mmseg'], allow_failed_imports=False)``.
"""

import copyreg
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from dmf_plugins.mmseg.data import BilateralFilter, BreastUltrasoundDataset
from dmf_plugins.mmseg.hook import DMFHook
from dmf_plugins.mmseg.loss import DMFLoss
from dmf_plugins.mmseg.metric import DMFMetric

__all__ = ["BilateralFilter", "BreastUltrasoundDataset", "DMFHook", "DMFLoss", "DMFMetric"]


def _reduce(buffer: HistoryBuffer) -> tuple[type, tuple[list[float], list[int], int]]:
    log, count = buffer.data
    return HistoryBuffer, (log.tolist(), count.tolist(), buffer.max_length)


# mmengine's checkpoints hold its log, whose pickle calls getattr; torch >= 2.6 rightly refuses that,
# and --resume fails. Pickled as its constructor and plain numbers the log is harmless and is allowed,
# with numpy's numbers such as a best score; all else stays as guarded as torch has it.
copyreg.pickle(HistoryBuffer, _reduce)
if hasattr(torch.serialization, "add_safe_globals"):
    _scalar: Any = np.float64().__reduce__()[0]
    _kinds: list[Any] = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    torch.serialization.add_safe_globals([HistoryBuffer, _scalar, np.dtype, *_kinds])
