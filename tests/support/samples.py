"""Inputs that several files feed to losses and to the memory."""

from __future__ import annotations

import numpy as np
import torch

from dmf_plugins import DynamicMemoryFusion


def feed(fusion: DynamicMemoryFusion, history: torch.Tensor) -> torch.Tensor:
    for values in history:
        fusion(values)
    return fusion.weights


def decreasing(steps: int, n: int = 3, seed: int = 0) -> torch.Tensor:
    """Plausible loss curves: exponential decay plus noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps)[:, None]
    curve = rng.uniform(0.5, 2, n) * np.exp(-t / rng.uniform(20, 200, n)) + 0.1
    return torch.tensor(curve * (1 + 0.1 * rng.standard_normal((steps, n))), dtype=torch.float32)


def batch(shape=(12, 10), classes=3, size=2, seed=0, dtype=torch.float32):
    """Random logits and a target in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, *shape, generator=generator, dtype=dtype)
    target = torch.randint(0, classes, (size, *shape), generator=generator)
    target.view(size, -1)[:, :classes] = torch.arange(classes)
    return logits, target
