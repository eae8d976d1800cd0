"""Import in ``custom_imports`` to train on CPUs with several processes under ``torchrun``.

mmengine's launcher selects a CUDA device before it opens the process group and so fails without
one; this opens a gloo group first, which mmengine then uses. The model wrapper must not name a
device either::

    custom_imports = dict(imports=['dmf_plugins.mmseg', 'dmf_plugins.mmseg.gloo'])
    model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
"""

import os

import torch.distributed as dist

if "RANK" in os.environ and not dist.is_initialized():
    dist.init_process_group("gloo")
