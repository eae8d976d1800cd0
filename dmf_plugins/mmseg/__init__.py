"""MMSegmentation plug-in; importing it registers everything.

In a config: ``custom_imports = dict(imports=['dmf_plugins.mmseg'], allow_failed_imports=False)``.
"""

from dmf_plugins.mmseg import checkpoint  # noqa: F401  its loader of checkpoints
from dmf_plugins.mmseg.data import BilateralFilter, BreastUltrasoundDataset
from dmf_plugins.mmseg.hook import DMFHook
from dmf_plugins.mmseg.loss import DMFLoss, MMSegDMFLoss
from dmf_plugins.mmseg.metric import DMFMetric
from dmf_plugins.mmseg.seed import EpochSeedHook

__all__ = [
    "BilateralFilter",
    "BreastUltrasoundDataset",
    "DMFHook",
    "DMFLoss",
    "DMFMetric",
    "EpochSeedHook",
    "MMSegDMFLoss",
]
