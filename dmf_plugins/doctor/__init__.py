"""What could be wrong with an installation, and the command that fixes it."""

from dmf_plugins.doctor.checks import Finding, as_json, examine, installed, is_broken
from dmf_plugins.doctor.interpreter import collect_env

__all__ = ["Finding", "as_json", "collect_env", "examine", "installed", "is_broken"]
