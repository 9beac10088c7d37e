"""What both AES modules ask of their arguments: kernels do not check bounds, and intrinsics write where told."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True, nogil=True)
def check_blocks(round_keys: npt.NDArray[np.uint64], x: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]) -> None:
    """ValueError unless round_keys is (11, 2) and x and out are (n, 2)."""
    if round_keys.shape[0] != 11 or round_keys.shape[1] != 2:
        raise ValueError("round keys are uint64 (11, 2)")
    if x.shape[1] != 2 or out.shape[1] != 2:
        raise ValueError("blocks are uint64 (n, 2)")
    if x.shape[0] != out.shape[0]:
        raise ValueError("x and out differ in length")
