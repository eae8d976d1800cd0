"""Name -> object tables that users extend with a decorator, and other packages by entry points."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

T = TypeVar("T")


def did_you_mean(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Sentence fragment listing ``known`` and, when one is close, the likely intended name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known names: {', '.join(sorted(known))}"


class Registry(Mapping[str, T], Generic[T]):
    """Read-only mapping of names to objects, filled through :meth:`register` and by other packages.

    Args:
        kind: what an entry is called in messages.
        group: group of entry points that name further objects. They are loaded at the first look;
            one that cannot be is left out, with a warning that names its package.
        accepts: class every object of an entry point must be an instance of.

    Examples:
        >>> RULES = Registry("rule")
        >>> @RULES.register("mine")
        ... def mine(window): ...
    """

    def __init__(self, kind: str, group: str | None = None, accepts: type = object) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._group = group
        self._accepts = accepts

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that stores its object under ``name``; raises ``KeyError`` if the name is taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise KeyError(f"{self.kind} {name!r} is already registered; choose another name")
            self._entries[name] = entry
            return entry

        return add

    def unregister(self, name: str) -> None:
        """Remove ``name``; raises ``KeyError`` if it is not registered."""
        del self._known[name]

    @property
    def _known(self) -> dict[str, T]:
        """The entries, those of other packages included."""
        if self._group is not None:
            group, self._group = (
                self._group,
                None,
            )  # first: a package may look in while it is loaded
            for point in sorted(entry_points(group=group), key=lambda p: (p.name, p.value)):
                self._load(point)
        return self._entries

    def _load(self, point: EntryPoint) -> None:
        try:
            entry = point.load()
            if not isinstance(entry, self._accepts):
                raise TypeError(f"it is no {self._accepts.__name__} but {entry!r}")
            if self._entries.get(point.name) is not entry:  # it may have registered itself
                self.register(point.name)(cast(T, entry))
        except Exception as error:
            package = point.dist.name if point.dist else "an unnamed package"
            warnings.warn(
                f"{self.kind} {point.name!r} ({point.value}) of {package} is left out: "
                f"{type(error).__name__}: {error}",
                stacklevel=4,
            )

    def __getitem__(self, name: str) -> T:
        if name not in self._known:
            raise KeyError(f"unknown {self.kind} {name!r}: {did_you_mean(str(name), self._known)}")
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(sorted(self._known))})"
