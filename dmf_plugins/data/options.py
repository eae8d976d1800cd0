"""Settings of a conversion, checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmf_plugins.bilateral import BilateralParameters
from dmf_plugins.data.images import check_size
from dmf_plugins.errors import UsageError

LABELS = {
    "lesion": {"background": 0, "lesion": 1},
    "benign-malignant": {"background": 0, "benign": 1, "malignant": 2},
}
LabelScheme = Literal["lesion", "benign-malignant"]


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """How a data set is converted.

    Args:
        labels: ``lesion`` (0/1) or ``benign-malignant`` (0/1/2).
        include_normal: also take images without a lesion (the paper does not).
        bilateral: filter parameters; None for no filter.
        size: ``(width, height)`` to resize to; None keeps every image's own.
        threshold: a pixel is lesion where its mask exceeds this grey value.
        seed: of the 70/15/15 split.
        fold: ``(k, n)`` for n-fold cross-validation instead: of n equal parts, part k (from 0) is for
            testing and the next one for validation.
        skip_invalid: leave invalid cases out, with a remark, instead of stopping.
        overwrite: replace an existing target.
        workers: threads; None for one per core.
        progress: show a progress bar on stderr.

    Raises:
        UsageError: a value is out of range.
    """

    labels: LabelScheme = "lesion"
    include_normal: bool = False
    bilateral: BilateralParameters | None = BilateralParameters()
    size: tuple[int, int] | None = None
    threshold: int = 127
    seed: int = 0
    fold: tuple[int, int] | None = None
    skip_invalid: bool = False
    overwrite: bool = False
    workers: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise UsageError(f"unknown labels {self.labels!r}; known: {', '.join(LABELS)}")
        if not 0 <= self.threshold <= 254:
            raise UsageError(f"threshold must lie in 0..254, got {self.threshold}")
        if self.seed < 0:
            raise UsageError(f"seed must not be negative, got {self.seed}")
        if self.fold is not None and not (0 <= self.fold[0] < self.fold[1] and self.fold[1] >= 3):
            raise UsageError(
                f"fold must be (k, n) with 0 <= k < n and at least 3 folds, got {self.fold}"
            )
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be at least 1, got {self.workers}")
        check_size(self.size)

    def filter_command(self, nnunet: bool) -> str:
        """The ``dmf filter`` that treats images to predict on as these options treat the data set's."""
        words = ["dmf filter IN --output OUT"]
        if self.bilateral is None:
            words.append("--no-bilateral")
        else:
            default = vars(BilateralParameters())
            words += [
                f"--{name.replace('_', '-')} {value}"
                for name, value in vars(self.bilateral).items()
                if value != default[name]
            ]
        if self.size is not None:
            words.append(f"--size {self.size[0]}x{self.size[1]}")
        return " ".join([*words, *(["--nnunet"] if nnunet else [])])
