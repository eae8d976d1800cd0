"""Dynamic Memory Fusion itself; needs torch only."""

from dmf_plugins.core.config import DMFConfig
from dmf_plugins.core.fusion import DynamicMemoryFusion
from dmf_plugins.core.state import Resume, SettingsDiffer
from dmf_plugins.core.weighting import WEIGHTINGS, Rule, Window
from dmf_plugins.registry import Registry

__all__ = [
    "WEIGHTINGS",
    "DMFConfig",
    "DynamicMemoryFusion",
    "Registry",
    "Resume",
    "Rule",
    "SettingsDiffer",
    "Window",
]
