"""Random numbers that depend on the epoch, not on how the training came to it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor
from torch.utils.data import get_worker_info


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds ``random``, numpy and torch at every epoch, in the workers of the data loader too.

    A resumed training then flips, crops and drops out what the uninterrupted one would have. Every
    rank and worker has numbers of its own. A training by iterations counts as one epoch.
    """

    def __init__(self) -> None:
        self._clock = torch.zeros(3, dtype=torch.int64).share_memory_()  # seed, epoch, rank
        self._seed = 0

    def before_run(self, runner: Runner) -> None:
        self._seed = runner.seed

    def before_train(self, runner: Runner) -> None:
        sampler = runner.train_dataloader.sampler
        if getattr(sampler, "seed", None) == self._seed:
            sampler.seed = runner.seed  # the resumed run's, where the config has none
        first = SeedOnce(self._clock)
        for pipeline in _pipelines(runner.train_dataloader.dataset):
            pipeline.transforms.insert(0, first)

    def before_train_epoch(self, runner: Runner) -> None:
        self._clock.copy_(torch.tensor((runner.seed, runner.epoch, get_rank())))
        _seed_all(*self._clock.tolist())

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        # a loader that has just started its workers drew a number, one that kept them did not
        if batch_idx == 0:
            _seed_all(*self._clock.tolist(), 0)


class SeedOnce:
    """First step of a pipeline: seeds the worker it runs in when a new epoch has begun.

    A worker lives for many epochs and hears of them through ``clock``, memory that it shares.
    """

    def __init__(self, clock: Tensor) -> None:
        self.clock = clock
        self.last: list[int] | None = None

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        now, worker = self.clock.tolist(), get_worker_info()
        if worker is not None and now != self.last:
            _seed_all(*now, 1 + worker.id)
            self.last = now
        return results


def _seed_all(*parts: int) -> None:
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  what transforms draw from
    torch.manual_seed(seed)


def _pipelines(dataset: Any) -> Iterator[Any]:
    """Pipelines of a data set and of those it wraps."""
    if hasattr(getattr(dataset, "pipeline", None), "transforms"):
        yield dataset.pipeline
    wrapped = getattr(dataset, "datasets", [getattr(dataset, "dataset", None)])
    for inner in wrapped:
        if inner is not None:
            yield from _pipelines(inner)
