"""Dynamic Memory Fusion for nnU-Net v2 and MMSegmentation 1.x."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dmf_plugins.core import WEIGHTINGS, DMFConfig, DynamicMemoryFusion
    from dmf_plugins.losses import LOSSES, DMFLoss

__all__ = ["LOSSES", "WEIGHTINGS", "DMFConfig", "DMFLoss", "DynamicMemoryFusion", "__version__"]

_HOME = {
    "DMFConfig": "core",
    "DynamicMemoryFusion": "core",
    "WEIGHTINGS": "core",
    "DMFLoss": "losses",
    "LOSSES": "losses",
}


def __getattr__(name: str) -> Any:
    # importing torch takes seconds, and `dmf --help` must not wait for it
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
