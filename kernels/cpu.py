"""Which instructions the kernels may use, decided once for the process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.registry import cpu_target

AES_PATHS = ("vaes512", "aesni", "portable")
_NEEDS = {
    "vaes512": frozenset({"aes", "vaes", "avx512f", "sse2"}),
    "aesni": frozenset({"aes", "sse2"}),
    "portable": frozenset[str](),
}


# Carry-less multiplication. Where AES is told to be portable, this is too.
CLMUL_PATHS = ("vpclmul512", "pclmul", "portable")
_CLMUL_NEEDS = {
    "vpclmul512": frozenset({"pclmul", "vpclmulqdq", "avx512f", "sse2"}),
    "pclmul": frozenset({"pclmul", "sse2"}),
    "portable": frozenset[str](),
}


def features() -> frozenset[str]:
    """The CPU features that Numba compiles for, in LLVM's names: the host's, unless NUMBA_CPU_FEATURES says others."""
    triple, _, switches = cpu_target.target_context.codegen().magic_tuple()
    if not triple.startswith("x86_64"):
        return frozenset()
    return frozenset(switch[1:] for switch in switches.split(",") if switch.startswith("+"))


def aes_path(available: frozenset[str], wanted: str | None = None) -> str:
    """The fastest of AES_PATHS that ``available`` features allow, or ``wanted``; ValueError where it cannot run."""
    possible = [path for path in AES_PATHS if _NEEDS[path] <= available]
    if wanted is None:
        return possible[0]
    if wanted not in possible:
        raise ValueError(f"MPCD_AES={wanted}: this CPU can run {', '.join(possible)}")
    return wanted


def clmul_path(available: frozenset[str], aes: str) -> str:
    """The fastest of CLMUL_PATHS that ``available`` features allow and that is no wider than AES's path ``aes``."""
    widest = {"vaes512": 0, "aesni": 1, "portable": 2}[aes]
    return next(path for path in CLMUL_PATHS[widest:] if _CLMUL_NEEDS[path] <= available)


AES_PATH = aes_path(features(), os.environ.get("MPCD_AES") or None)
CLMUL_PATH = clmul_path(features(), AES_PATH)

_SHARED = (
    "cpu.py",
    "aes_arguments.py",
    "aes_intrinsics.py",
    "aes_portable.py",
    "transpose.py",
    "leaf_sums_intrinsics.py",
    "leaf_sums_portable.py",
    "half_tree.py",
    "half_tree_intrinsics.py",
    "half_tree_portable.py",
    "lpn.py",
    "gf128.py",
    "gf128_intrinsics.py",
    "gf128_portable.py",
)


def _build() -> str:
    """Names the paths and the sources of the kernels that other modules' kernels call."""
    digest = hashlib.sha256(f"{AES_PATH} {CLMUL_PATH}".encode())
    for name in _SHARED:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return f"{AES_PATH}_{digest.hexdigest()[:16]}"


BUILD = _build()


def linked(function: Callable[..., Any]) -> Any:
    """``@njit(cache=True, nogil=True)`` for a kernel that calls kernels of another module.

    Numba keys its cache by CPU, types and the function's own file, so code linked to another AES path or to an older
    version of the callee would be loaded as if it were right. The cached file's name comes from the qualified name.
    """
    function.__qualname__ = f"{function.__qualname__}_{BUILD}"
    return numba.njit(cache=True, nogil=True)(function)
