"""Float64 NumPy statements of the paper's equations, written without the library."""

from __future__ import annotations

import numpy as np

EPS = 1e-7


def scaled(history: np.ndarray) -> np.ndarray:
    """Eq. 10 then Eq. 9 over ``[steps, N]``."""
    h = np.where(history >= 0, np.log1p(np.abs(history)), -np.log1p(np.abs(history)))
    return (h - h.min(0)) / (h.max(0) - h.min(0) + EPS)


def mads(history: np.ndarray) -> np.ndarray:
    h = scaled(history)
    return np.median(np.abs(h - np.median(h, axis=0)), axis=0)


class Oracle:
    """Step-by-step DMF as section 3 of the paper reads, one rule at a time."""

    def __init__(self, rule: str, n: int, memory_size: int, min_history: int) -> None:
        self.rule, self.memory_size, self.min_history = rule, memory_size, min_history
        self.history = np.zeros((0, n))
        self.weights = np.full(n, 1 / n)
        self.log_prior = np.log(np.full(n, 1 / n))

    def step(self, values: np.ndarray) -> np.ndarray:
        self.history = np.vstack((self.history, values))[-self.memory_size :]
        if len(self.history) < self.min_history:
            return self.weights
        if self.rule == "variance":
            v = scaled(self.history).var(axis=0)
            if v.sum() > 0:
                self.weights = v / v.sum()
            return self.weights
        m = mads(self.history)
        if not (m > 0).any():
            return self.weights
        log_w = -np.log(m + EPS) + (self.log_prior if self.rule == "bayesian" else 0)
        log_w = log_w - log_w.max()
        log_w -= np.log(np.exp(log_w).sum())
        if self.rule == "bayesian":
            self.log_prior = log_w
        self.weights = np.exp(log_w)
        return self.weights
