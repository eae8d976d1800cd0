"""Where nnU-Net finds the DMF trainers: set ``nnUNet_extTrainer`` to this folder.

nnU-Net imports every module below that folder and forgets it afterwards, so the classes live in the
installed package (where they can be pickled) and are only named here.
"""

from dmf_plugins.nnunet import *  # noqa: F403
