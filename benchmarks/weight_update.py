"""Cost of one weight update: by rule, number of terms, memory and length of training.

python benchmarks/weight_update.py
"""

from __future__ import annotations

import torch
from common import heading, interleaved, table

from dmf_plugins import WEIGHTINGS, DMFLoss, DynamicMemoryFusion

TERMS = (2, 3, 8, 32)
MEMORIES = (30, 150, 1000, 10_000)


def update(rule: str, terms: int, memory: int) -> object:
    fusion = DynamicMemoryFusion(terms, weighting=rule, memory_size=memory, min_history=10)
    with torch.no_grad():
        fusion._history.copy_(torch.rand(memory, terms))
        fusion._step.fill_(memory)
    values = torch.rand(terms)
    return lambda: fusion(values)


def main() -> None:
    heading("Weight update")
    rules = sorted(WEIGHTINGS)
    jobs = {(r, n, m): update(r, n, m) for r in rules for n in TERMS for m in (150,)}
    jobs |= {(r, 3, m): update(r, 3, m) for r in rules for m in MEMORIES}
    seconds = interleaved(jobs, 200, warmup=20)  # type: ignore[arg-type]

    def cell(key: tuple[str, int, int]) -> str:
        return f"{1e6 * seconds[key]:.0f}"

    rows = [[r, *(cell((r, n, 150)) for n in TERMS)] for r in rules]
    table(["µs, memory 150", *(f"N = {n}" for n in TERMS)], rows)
    rows = [[r, *(cell((r, 3, m)) for m in MEMORIES)] for r in rules]
    table(["µs, N = 3", *(f"memory {m}" for m in MEMORIES)], rows)

    fusion = DynamicMemoryFusion(3)
    values = torch.rand(3)
    rows = []
    for done in (100, 10_000, 30_000):
        while int(fusion.step) < done:
            fusion(values)
        rows.append([done, f"{1e6 * interleaved({'': lambda: fusion(values)}, 200)['']:.0f}"])
    table(["steps trained", "µs a step (variance, N = 3, memory 150)"], rows)

    loss = DMFLoss()
    rows = []
    for shape in ((12, 2, 128, 128), (2, 2, 512, 512)):
        logits = torch.randn(shape, requires_grad=True)
        target = torch.randint(0, 2, (shape[0], *shape[2:]))

        def step(logits: torch.Tensor = logits, target: torch.Tensor = target) -> None:
            logits.grad = None
            loss(logits, target).backward()

        both = interleaved({"step": step, "update": lambda: loss.fusion(values)}, 50)
        share = both["update"] / both["step"]
        rows.append(["x".join(map(str, shape)), f"{1e3 * both['step']:.2f}", f"{share:.0%}"])
    table(["logits", "loss step, ms", "of it the weight update"], rows)


if __name__ == "__main__":
    main()
