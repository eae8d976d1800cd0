"""What a grid consists of, where its files lie, and what is finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dmf_plugins.atomic import check_target, mark, writing
from dmf_plugins.data import convert_dataset
from dmf_plugins.data.readers import READERS
from dmf_plugins.data.writers import write_json
from dmf_plugins.errors import DataError, DMFError, UsageError

PLAN = "grid.json"
RESULT = "result.json"
BASELINE = "fixed"
# a cell that was trained with other values of these must not stand in the same table
_BINDING = ("dataset", "data", "epochs", "size", "filters", "batch_size", "cfg_options")


@dataclass(frozen=True)
class Cell:
    """One training: a setting and a seed.

    Attributes:
        setting: name of the setting, a row of the tables.
        options: options of ``DMFLoss`` for it.
        seed: of the split, the initial network and the order of the images.
        folder: where everything of this cell goes.
    """

    setting: str
    options: dict[str, Any]
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.setting}/seed{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it has run to its end; a killed cell has no result."""
        return (self.folder / RESULT).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while the cell runs; the system lets go of it however the process ends.

        Raises:
            DMFError: another process runs this cell.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.with_name(f".{self.folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DMFError(f"another process is running {self.name}; wait for it") from error
        with lock:
            yield

    def result(self) -> dict[str, Any]:
        """What :func:`~dmf_plugins.grid.cell.run_cell` wrote."""
        path = self.folder / RESULT
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"{path} is damaged ({error}); remove it, and the cell runs again"
            ) from error


@dataclass
class GridPlan:
    """Settings, seeds and the training they share.

    Attributes:
        output: folder of the grid.
        dataset, data: reader and source of the images.
        settings: name -> options of ``DMFLoss``.
        seeds: one split and one initial network each.
        epochs, size, filters, batch_size: training length, image side, filters of the U-Net's first
            stage, images a step.
        cfg_options: further entries merged into the MMSegmentation config.
    """

    output: Path
    dataset: str
    data: str
    settings: dict[str, dict[str, Any]]
    seeds: list[int]
    epochs: int
    size: int
    filters: int
    batch_size: int
    cfg_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises:
        UsageError: a value is not what the grid needs.
        """
        if self.dataset not in READERS:
            raise UsageError(f"unknown data set {self.dataset!r}; known: {', '.join(READERS)}")
        for name in ("epochs", "size", "filters", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not self.seeds or not all(isinstance(seed, int) for seed in self.seeds):
            raise UsageError(f"seeds must be whole numbers, at least one, got {self.seeds!r}")
        if not self.settings or not all(isinstance(s, dict) for s in self.settings.values()):
            raise UsageError("a grid needs settings, each a name with options of DMFLoss")

    @property
    def begun(self) -> bool:
        """Whether data were converted for it, without which no cell runs."""
        return any(self.data_root(seed).exists() for seed in self.seeds)

    def cells(self) -> list[Cell]:
        """All cells, seed by seed, so that an unfinished grid has whole seeds to compare."""
        return [
            Cell(name, options, seed, self.output / "cells" / name / f"seed{seed}")
            for seed in self.seeds
            for name, options in self.settings.items()
        ]

    def data_root(self, seed: int) -> Path:
        """Converted data of one seed."""
        return self.output / "data" / f"seed{seed}" / READERS[self.dataset].title

    def save(self) -> None:
        """Write ``grid.json``, whole."""
        content = {k: v for k, v in asdict(self).items() if k != "output"}
        with writing(self.output / PLAN, overwrite=True) as partial:
            write_json(partial, content)

    def prepare_data(self, progress: bool = False) -> None:
        """Convert the data once for every seed that lacks it."""
        for seed in self.seeds:
            if not self.data_root(seed).exists():
                convert_dataset(
                    self.dataset,
                    self.data,
                    "mmseg",
                    output=self.data_root(seed).parent,
                    size=(self.size, self.size),
                    seed=seed,
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
    for name, options in variants.items():
        if name in settings or not name or "/" in name:
            raise UsageError(f"a variant cannot be called {name!r}: taken, empty, or with a slash")
        settings[name] = dict(options)
    _check(settings)
    return settings


def _check(settings: Mapping[str, Mapping[str, Any]]) -> None:
    from dmf_plugins.losses import DMFLoss

    for name, options in settings.items():
        try:
            DMFLoss(**options)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"setting {name}: {error.args[0]}") from error


def make_plan(plan: GridPlan) -> GridPlan:
    """Store a plan, or extend the one in its folder by new settings and seeds.

    One that came no further than its data gives way, so that a mistyped command can be corrected.

    Raises:
        UsageError: the folder holds something else, or a grid whose cells were trained differently.
    """
    output = plan.output
    if not (output / PLAN).exists():
        check_target(output, "grid", overwrite=True)
        mark(output, "grid")
    elif (earlier := load_plan(output)).begun:
        for key in _BINDING:
            old, new = getattr(earlier, key), getattr(plan, key)
            if old != new:
                raise UsageError(
                    f"{output} holds a grid with {key}={old!r}, not {new!r}; choose another --output"
                )
        for name, options in plan.settings.items():
            if earlier.settings.get(name, options) != options:
                raise UsageError(f"{output} holds another setting {name!r}; choose another name")
        plan.settings = earlier.settings | plan.settings
        plan.seeds = sorted({*earlier.seeds, *plan.seeds})
    plan.save()
    return plan


def load_plan(output: Path) -> GridPlan:
    """The plan stored in a grid's folder.

    Raises:
        UsageError: there is none.
        DataError: it cannot be read.
    """
    path = output / PLAN
    if not path.is_file():
        raise UsageError(f"{output} holds no grid; start one with: dmf grid DATA --output {output}")
    try:
        return GridPlan(output=output, **json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError, UsageError) as error:
        raise DataError(
            f"{path} is damaged ({error}); remove it and repeat the command that began this grid, with "
            "all its options: finished cells stay"
        ) from error


def unfinished(cells: Sequence[Cell]) -> Iterator[tuple[int, Cell]]:
    """Number and cell of those still to run."""
    return ((i, cell) for i, cell in enumerate(cells) if not cell.finished)
