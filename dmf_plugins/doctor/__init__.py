"""What could be wrong with an installation, and the command that fixes it."""

from dmf_plugins.doctor.checks import Finding, as_json, examine, installed, is_broken

__all__ = ["Finding", "as_json", "examine", "installed", "is_broken"]
