"""nnU-Net's own multi-GPU worker on a machine without GPUs: gloo for NCCL, the CPU for a card.

    python -m tests.support.nnunet_ddp WORLD DATASET CONFIGURATION FOLD TRAINER [--c]

Each rank leaves its DMF state in the fold's folder as ``rank0.pth``, ``rank1.pth``, ...
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.run.run_training import run_ddp
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

from tests.conftest import free_port


def worker(rank: int, arguments: tuple, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group = partial(_gloo, dist.init_process_group)
    torch.cuda.set_device = lambda device: None
    torch.cuda.device_count = lambda: world
    module.DDP = partial(_on_cpu, module.DDP)
    initialize = module.nnUNetTrainer.initialize
    module.nnUNetTrainer.initialize = lambda self: (_move(self), initialize(self))
    finish = module.nnUNetTrainer.on_train_end
    module.nnUNetTrainer.on_train_end = lambda self: (finish(self), _keep(self))
    run_ddp(rank, *arguments, world)


def _gloo(init, backend, **options):
    init("gloo", **options)


def _on_cpu(ddp, network, device_ids):
    return ddp(network)


def _move(trainer) -> None:
    # the constructor takes the card of this rank, whatever it is told
    trainer.device = torch.device("cpu")
    trainer.grad_scaler = None


def _keep(trainer) -> None:
    path = Path(trainer.output_folder) / f"rank{trainer.local_rank}.pth"
    torch.save(trainer.loss.loss.fusion.state_dict_dmf(), path)


if __name__ == "__main__":
    world, dataset, configuration, fold, trainer = sys.argv[1:6]
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(free_port()))
    task = (dataset, configuration, int(fold), trainer, "nnUNetPlans")
    flags = (False, "--c" in sys.argv, False, None, False, False)
    arguments = ((*task, *flags), int(world))
    # from a process that has done nothing yet but import
    mp.start_processes(worker, args=arguments, nprocs=int(world), start_method="fork")
