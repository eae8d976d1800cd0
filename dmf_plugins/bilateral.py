"""Settings of the speckle filter: light, so that the command line's help can show them."""

from __future__ import annotations

from dataclasses import dataclass

from dmf_plugins.errors import UsageError


@dataclass(frozen=True)
class BilateralParameters:
    """Parameters of the bilateral filter (Eq. 26-27) in OpenCV's terms.

    The paper states no values. The defaults are OpenCV's customary 9 / 75 / 75 for 8-bit images.

    Args:
        diameter: width of the neighbourhood Omega, pixels, odd.
        sigma_color: sigma_r, grey levels (of 255).
        sigma_space: sigma_s, pixels.

    Raises:
        UsageError: a value is out of range.
    """

    diameter: int = 9
    sigma_color: float = 75.0
    sigma_space: float = 75.0

    def __post_init__(self) -> None:
        if self.diameter < 1 or self.diameter % 2 == 0:
            raise UsageError(f"bilateral diameter must be odd and positive, got {self.diameter}")
        for name in ("sigma_color", "sigma_space"):
            if not getattr(self, name) > 0:
                raise UsageError(f"bilateral {name} must be positive, got {getattr(self, name)}")
