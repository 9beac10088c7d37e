"""AES-128: counter mode and fixed-key hashing, by the CPU's instructions or, where it has none, bitsliced.

Both modules have the same four kernels with the same results; see their docstrings.
"""

from __future__ import annotations

from mpcd.kernels.cpu import AES_PATH

if AES_PATH == "portable":
    from mpcd.kernels.aes_portable import ctr_keystream, encrypt_blocks, expand_key, tccr_hash
else:
    from mpcd.kernels.aes_intrinsics import ctr_keystream, encrypt_blocks, expand_key, tccr_hash

__all__ = ["ctr_keystream", "encrypt_blocks", "expand_key", "tccr_hash"]
