import os
import subprocess
import sys

import pytest

from mpcd.kernels import cpu

VAES = frozenset({"sse2", "aes", "vaes", "avx512f"})


@pytest.mark.parametrize(
    ("available", "path"),
    [
        (VAES, "vaes512"),
        (VAES - {"avx512f"}, "aesni"),
        (VAES - {"vaes"}, "aesni"),
        (frozenset({"sse2", "aes"}), "aesni"),
        (VAES - {"aes"}, "portable"),
        (frozenset({"sse2"}), "portable"),
        (frozenset(), "portable"),
    ],
)
def test_the_fastest_path_that_the_features_allow(available, path):
    assert cpu.aes_path(available) == path


CLMUL = frozenset({"pclmul", "vpclmulqdq"})


@pytest.mark.parametrize(
    ("available", "aes", "path"),
    [
        (VAES | CLMUL, "vaes512", "vpclmul512"),
        (VAES | CLMUL, "aesni", "pclmul"),
        (VAES | CLMUL, "portable", "portable"),
        (VAES | {"pclmul"}, "vaes512", "pclmul"),
        (VAES, "vaes512", "portable"),
        (frozenset(), "portable", "portable"),
    ],
)
def test_carry_less_products_are_no_wider_than_aes(available, aes, path):
    assert cpu.clmul_path(available, aes) == path


def test_a_wanted_path():
    assert cpu.aes_path(VAES, "portable") == "portable"
    assert cpu.aes_path(VAES, "aesni") == "aesni"


@pytest.mark.parametrize("wanted", ["vaes512", "table", "Portable"])
def test_a_path_that_cannot_run_is_refused_with_those_that_can(wanted):
    with pytest.raises(ValueError, match=rf"MPCD_AES={wanted}: this CPU can run aesni, portable"):
        cpu.aes_path(frozenset({"sse2", "aes"}), wanted)


def test_this_process_runs_what_its_cpu_can():
    assert cpu.aes_path(cpu.features(), cpu.AES_PATH) == cpu.AES_PATH


def possible():
    return [path for path in cpu.AES_PATHS if cpu._NEEDS[path] <= cpu.features()]


def run(script, cache, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr


HASH = """
import numpy as np
from mpcd.kernels import aes, cpu, ot_hash
x = np.arange(42, dtype=np.uint64).reshape(21, 2)
out = np.empty(21, np.uint64)
ot_hash.string_receiver(aes.expand_key(np.arange(16, dtype=np.uint8)), x, 5, 64, out)
hits = sum(ot_hash.string_receiver.stats.cache_hits.values())
print(cpu.AES_PATH, hits, out.tobytes().hex())
"""


def test_paths_agree_and_never_load_each_others_code(tmp_path):
    results = set()
    for path in possible():
        for hits in range(2):
            code, out, err = run(HASH, tmp_path, MPCD_AES=path)
            assert code == 0, err
            ran, hit, digest = out.split()
            assert (ran, int(hit)) == (path, hits)
            results.add(digest)
    assert len(results) == 1


def test_numba_told_to_spare_an_instruction_is_believed(tmp_path):
    code, out, err = run(
        "from mpcd.kernels import cpu; print(cpu.AES_PATH)", tmp_path, NUMBA_CPU_FEATURES="", MPCD_AES=""
    )
    assert (code, out) == (0, "portable"), err


def test_an_impossible_path_stops_the_process(tmp_path):
    code, _, err = run("import mpcd.kernels.aes", tmp_path, MPCD_AES="table")
    assert code == 1
    assert "MPCD_AES=table: this CPU can run" in err
