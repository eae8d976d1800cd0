"""What a trial consists of: kept on disk, extended by new settings and repeats, never changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dmf_plugins.atomic import check_target, mark, writing
from dmf_plugins.data.writers import write_json
from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.trials.engine import Cell

P = TypeVar("P", bound="Plan")
EPOCH = "epoch.txt"  # in a cell's folder, how many it has finished


@dataclass(kw_only=True)
class Plan:
    """Settings and repeats that share everything else.

    Attributes:
        output: folder of the trial.
        settings: name -> what the setting consists of; the first is the one others are compared with.
        seeds: one repeat each.
        epochs: length of a training, where it is known.
    """

    kind: ClassVar[str]
    start: ClassVar[str]  # command that begins one
    # a cell that was trained with other values of these must not stand in the same table
    binding: ClassVar[tuple[str, ...]]

    output: Path
    settings: dict[str, dict[str, Any]]
    seeds: list[int]
    epochs: int | None

    def __post_init__(self) -> None:
        """Raises:
        UsageError: a value is not what the plan needs.
        """
        self.output = self.output.absolute()  # a job may run elsewhere
        if not self.seeds or not all(isinstance(seed, int) for seed in self.seeds):
            raise UsageError(f"seeds must be whole numbers, at least one, got {self.seeds!r}")
        if not self.settings or not all(isinstance(s, dict) for s in self.settings.values()):
            raise UsageError(f"a {self.kind} needs settings, each a name with its options")

    @property
    def repeat(self) -> str:
        """What its repeats are called."""
        return "seed"

    @property
    def command(self) -> str:
        """Subcommand of ``dmf`` that runs one of its cells."""
        return self.kind

    @property
    def begun(self) -> bool:
        """Whether anything was done for it that a changed plan would contradict."""
        return any(cell.folder.exists() for cell in self.cells())

    def cells(self) -> list[Cell]:
        """All cells, repeat by repeat, so that an unfinished trial has whole repeats to compare."""
        return [
            Cell(name, options, seed, self.output / "cells" / name / f"{self.repeat}{seed}")
            for seed in self.seeds
            for name, options in self.settings.items()
        ]

    def epoch(self, cell: Cell) -> int:
        """As the training notes it at the end of each epoch."""
        try:
            return int((cell.folder / EPOCH).read_text())
        except (OSError, ValueError):
            return 0

    def save(self) -> None:
        """Write ``KIND.json``, whole."""
        content = {k: v for k, v in asdict(self).items() if k != "output"}
        with writing(self.output / f"{self.kind}.json", overwrite=True) as partial:
            write_json(partial, content)

    def begin(self: P) -> P:
        """Store the plan, or extend the one in its folder by new settings and repeats.

        One that came to nothing gives way, so that a mistyped command can be corrected.

        Raises:
            UsageError: the folder holds something else, or a plan whose cells were trained differently.
        """
        if not (self.output / f"{self.kind}.json").exists():
            check_target(self.output, self.kind, overwrite=True)
            mark(self.output, self.kind)
        elif (earlier := type(self).load(self.output)).begun:
            for key in self.binding:
                old, new = getattr(earlier, key), getattr(self, key)
                if old != new:
                    raise UsageError(
                        f"{self.output} holds a {self.kind} with {key}={old!r}, not {new!r}; choose "
                        "another --output"
                    )
            for name, options in self.settings.items():
                if earlier.settings.get(name, options) != options:
                    raise UsageError(
                        f"{self.output} holds another setting {name!r}; choose another name"
                    )
            self.settings = earlier.settings | self.settings
            self.seeds = sorted({*earlier.seeds, *self.seeds})
        self.save()
        return self

    @classmethod
    def load(cls: type[P], output: Path) -> P:
        """The plan stored in a folder.

        Raises:
            UsageError: there is none.
            DataError: it cannot be read.
        """
        path = output / f"{cls.kind}.json"
        if not path.is_file():
            raise UsageError(
                f"{output} holds no {cls.kind}; start one with: {cls.start} --output {output}"
            )
        try:
            return cls(output=output, **json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError, UsageError) as error:
            raise DataError(
                f"{path} is damaged ({error}); remove it and repeat the command that began this "
                f"{cls.kind}, with all its options: finished cells stay"
            ) from error


def check_options(
    setting: str, options: Mapping[str, Any], loss: Callable[..., Any] | None = None
) -> Any:
    """The loss of a setting: ``DMFLoss``, or another that is given.

    Raises:
        UsageError: the loss refuses the options; the message names the setting.
    """
    from dmf_plugins.losses import DMFLoss

    try:
        return (loss or DMFLoss)(**options)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else "the loss refuses these options together"
        raise UsageError(f"setting {setting}: {reason}") from error


def own_settings(
    variants: Mapping[str, Any],
    option: str,
    taken: Collection[str],
    check: Callable[[str, dict[str, Any]], Any] = check_options,
) -> dict[str, dict[str, Any]]:
    """The settings a user has named.

    Args:
        variants: name -> options of the loss.
        option: of the command, which gave them.
        taken: names of the other settings.
        check: raises ``UsageError`` for options that no training would take.

    Raises:
        UsageError: a name cannot be that of a folder or is taken, or options are refused.
    """
    for name, options in variants.items():
        if not name.strip(".") or "/" in name or name in taken:
            raise UsageError(
                f"{option}: a setting cannot be called {name!r}: taken, empty, dots or with a slash"
            )
        if not isinstance(options, dict):
            raise UsageError(f"{option} {name} must be a JSON object of DMFLoss options")
        check(name, options)
    return dict(variants)


@dataclass(kw_only=True)
class TrialPlan(Plan):
    """A trial of one framework.

    Attributes:
        framework: ``nnunet`` or ``mmseg``.
        epochs: length of a training; None for the framework's own.
        options: what else the framework needs: data set, configuration, config file.
    """

    kind: ClassVar[str] = "trial"
    start: ClassVar[str] = "dmf trial nnunet DATASET, or dmf trial mmseg CONFIG,"
    binding: ClassVar[tuple[str, ...]] = ("framework", "epochs", "options")

    framework: str
    epochs: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the framework, for people."""
        return "nnU-Net" if self.framework == "nnunet" else "MMSegmentation"

    @property
    def command(self) -> str:
        return f"trial {self.framework}"

    @property
    def repeat(self) -> str:
        return "fold" if self.framework == "nnunet" else "seed"
