"""A short name for the numbers of a network, so that trainings can be seen to begin alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor


def network_digest(state: Mapping[str, Tensor]) -> str:
    """Digest of all weights but those of a loss."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if "loss_decode" not in name:
            digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
