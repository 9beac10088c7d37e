"""Where figures were taken: CPU, libraries, threads, load."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import ssl
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mpcd.daemon.version import software_digest, software_version
from mpcd.kernels import cpu

LIBRARIES = ("numpy", "numba", "llvmlite", "uvloop", "cryptography", "pynacl")
THREADS = ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_TELLING = ("aes", "vaes", "gfni", "avx2", "avx512f", "avx512bw", "avx512vbmi", "avx512ifma", "vpclmulqdq", "sha")


def describe() -> dict[str, Any]:
    """This machine and this process's settings."""
    available = cpu.features()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": _model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "features": [name for name in _TELLING if name in available],
        "aes_path": cpu.AES_PATH,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "blas": f"{blas['name']} {blas['version']}",
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "mpcd": {"version": software_version(), "digest": software_digest()},
        "threads": {name: os.environ.get(name, "") for name in THREADS},
        "pinned": sorted(os.sched_getaffinity(0)) if len(os.sched_getaffinity(0)) < (os.cpu_count() or 1) else None,
    }


def peak_memory() -> int:
    """Bytes: the largest resident set that this process ever had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
