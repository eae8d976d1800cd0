"""MMSegmentation plug-in; importing it registers everything.

In a config: ``custom_imports = dict(imports=['dmf_plugins.mmseg'], allow_failed_imports=False)``.
"""

from dmf_plugins.mmseg.checkpoint import allow_log
from dmf_plugins.mmseg.data import BilateralFilter, BreastUltrasoundDataset
from dmf_plugins.mmseg.hook import DMFHook
from dmf_plugins.mmseg.loss import DMFLoss
from dmf_plugins.mmseg.metric import DMFMetric

__all__ = ["BilateralFilter", "BreastUltrasoundDataset", "DMFHook", "DMFLoss", "DMFMetric"]

allow_log()
