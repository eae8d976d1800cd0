"""A function under ``torch.compile`` that works where compilation does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Compiled:
    """``function``, compiled on its first call; as it is, from then on, if that fails.

    Args:
        function: what to compile.
        say: shows the user the line about a failure.
    """

    def __init__(self, function: Callable[..., Any], say: Callable[[str], object]) -> None:
        self.function = function
        self.compiled: Callable[..., Any] | None = torch.compile(function)
        self.say = say

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            return self.function(*arguments)
        try:
            return self.compiled(*arguments)
        except Exception as error:
            result = self.function(*arguments)  # raises again what is not the compiler's
            self.compiled = None
            reason = str(error).strip().partition("\n")[0]
            self.say(f"the DMF loss is not compiled: {type(error).__name__}: {reason}")
            return result
