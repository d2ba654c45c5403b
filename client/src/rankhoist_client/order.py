"""The order of candidates by their scores; the server's, and the client's where the protocol has none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def best_first(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The numbers of N scores, the highest first; among equals the earlier first, NaN last."""
    return np.argsort(-scores.astype(np.float64), kind="stable")
