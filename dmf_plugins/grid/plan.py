"""What a grid consists of: settings, and data converted once per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dmf_plugins.data import convert_dataset
from dmf_plugins.data.readers import READERS
from dmf_plugins.errors import UsageError
from dmf_plugins.trials.plan import Plan, check_options, own_settings

BASELINE = "fixed"
SIZE_STEP = 16  # the U-Net halves the image four times


@dataclass(kw_only=True)
class GridPlan(Plan):
    """Settings, seeds and the training they share.

    Attributes:
        dataset, data: reader and source of the images.
        epochs, size, filters, batch_size: training length, image side, filters of the U-Net's first
            stage, images per step.
        folds: of a cross-validation; 1 for one split per seed. With n folds, seed r of the plan is
            part r % n of the split r // n.
        include_normal: also take images without a lesion.
        cfg_options: further entries merged into the MMSegmentation config.
    """

    kind: ClassVar[str] = "grid"
    start: ClassVar[str] = "dmf grid DATA"
    binding: ClassVar[tuple[str, ...]] = (
        "dataset", "data", "epochs", "size", "filters", "batch_size", "cfg_options", "folds",
        "include_normal",
    )  # fmt: skip

    dataset: str
    data: str
    epochs: int
    size: int
    filters: int
    batch_size: int
    cfg_options: dict[str, Any] = field(default_factory=dict)
    folds: int = 1
    include_normal: bool = False

    def __post_init__(self) -> None:
        """Raises:
        UsageError: a value is not what the grid needs.
        """
        if self.dataset not in READERS:
            raise UsageError(f"unknown data set {self.dataset!r}; known: {', '.join(READERS)}")
        for name in ("epochs", "size", "filters", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.size % SIZE_STEP and not any(key.startswith("model") for key in self.cfg_options):
            raise UsageError(
                f"size must be a multiple of {SIZE_STEP} for the U-Net, got {self.size}"
            )
        if self.folds not in (1, *range(3, 21)):
            raise UsageError(f"folds must be 1 for none, or 3 to 20, got {self.folds!r}")
        super().__post_init__()

    @property
    def repeat(self) -> str:
        return "seed" if self.folds == 1 else "run"

    @property
    def begun(self) -> bool:
        """Whether data were converted for it, without which no cell runs."""
        return any(self.data_root(seed).exists() for seed in self.seeds)

    def data_root(self, seed: int) -> Path:
        """Converted data of one seed."""
        return self.output / "data" / f"{self.repeat}{seed}" / READERS[self.dataset].title

    def prepare_data(self, progress: bool = False) -> None:
        """Convert the data once for every seed that lacks it."""
        for seed in self.seeds:
            split, part = divmod(seed, self.folds)
            if not self.data_root(seed).exists():
                convert_dataset(
                    self.dataset,
                    self.data,
                    "mmseg",
                    output=self.data_root(seed).parent,
                    size=(self.size, self.size),
                    seed=split,
                    fold=None if self.folds == 1 else (part, self.folds),
                    include_normal=self.include_normal,
                    progress=progress,
                )


def grid_settings(
    rules: Sequence[str], auxiliaries: Sequence[str], variants: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Every rule with every auxiliary loss (``none`` for none), the paper's baseline, and variants.

    Raises:
        UsageError: a name is unknown or taken, or an option is refused.
    """
    settings: dict[str, dict[str, Any]] = {
        BASELINE: {"weighting": "fixed", "auxiliary": None},
        **{
            f"{rule}+{auxiliary}": {
                "weighting": rule,
                "auxiliary": None if auxiliary == "none" else auxiliary,
            }
            for rule in rules
            for auxiliary in auxiliaries
            if (rule, auxiliary) != ("fixed", "none")
        },
    }
    for name, options in settings.items():
        check_options(name, options)
    return settings | own_settings(variants, "--variant", settings)
