"""Weighted sums of the keystreams of a tree's leaves: the arithmetic of a VOLE over a field of 2^k elements.

Over F_(2^k) with elements written as k bits, weighing by the element x adds leaf x's stream into those of k columns
whose bit of x is set. With P_e the sum of the first e streams, column j is the sum of P_e over all multiples e of 2^j:
a block of 2^j streams that counts is the difference of the two P_e at its ends. So stream x costs two additions, one
into P and one into the P_e of its ruler number (the zeros that e = x + 1 ends in), and the columns are suffix sums.
"""

from __future__ import annotations

from mpcd.kernels.cpu import AES_PATH

if AES_PATH == "portable":
    from mpcd.kernels.leaf_sums_portable import leaf_sums
else:
    from mpcd.kernels.leaf_sums_intrinsics import leaf_sums

__all__ = ["leaf_sums"]
