"""nnU-Net v2 trainers and the mixin they are made of."""

from dmf_plugins.nnunet.mixin import DMFTrainerMixin
from dmf_plugins.nnunet.trainers import *  # noqa: F403
from dmf_plugins.nnunet.trainers import TRAINERS

__all__ = ["TRAINERS", "DMFTrainerMixin"]
__all__.extend(TRAINERS)
