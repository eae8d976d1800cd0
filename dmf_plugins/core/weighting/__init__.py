"""Rules that turn a memory of loss values into weights: one method a file, all in ``WEIGHTINGS``.

A rule is a function ``Window -> Tensor[N]`` that returns one *log score* per term; the weights are
their softmax, so a rule need not normalise. ``-inf`` stands for weight zero. When no score is
finite, or any is NaN, the statistics are degenerate and the fusion keeps its last valid weights.
To add a rule, write such a function here (or anywhere) and register it::

    @WEIGHTINGS.register("range")
    def range_rule(window, power=1.0):
        '''w_i proportional to a power of the range of the raw history.'''
        return power * (window.high() - window.low()).log()

Keyword arguments are the rule's options: ``weighting={"type": "range", "power": 2.0}``. A rule that
keeps more than the memory holds, or learns, is a subclass of :class:`~.base.Rule`.

Rules must not branch on tensor values: they run inside the training step, on the device.
"""

from dmf_plugins.core.weighting import cov, dwa, geometric, paper, random, softadapt, uncertainty
from dmf_plugins.core.weighting.base import (
    WEIGHTINGS,
    PriorRule,
    Rule,
    Window,
    build_rule,
    check_rule,
    rule_settings,
)

__all__ = [
    "WEIGHTINGS",
    "PriorRule",
    "Rule",
    "Window",
    "build_rule",
    "check_rule",
    "cov",
    "dwa",
    "geometric",
    "paper",
    "random",
    "rule_settings",
    "softadapt",
    "uncertainty",
]
