"""The fuzzer: ``python -m tests.fuzz`` (``make fuzz``) tries a million inputs, each target in processes of its own.

    --targets a,b    some of them        --scale 0.1    a tenth of the inputs        --seed n    again as that run was

Hypothesis makes inputs that are nearly right; atheris (libFuzzer), where it is installed, follows branches. The end is
0 when no input crashed or hung its target and no target's memory grew.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from importlib import util
from pathlib import Path

from tests.fuzz import harness
from tests.fuzz.harness import GROWTH, HANG, TARGETS, Figures, Trying, load

HYPOTHESIS, ATHERIS = "hypothesis", "atheris"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 1 << 31))
    parser.add_argument("--one", nargs=3, metavar=("ENGINE", "TARGET", "INPUTS"), help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        engine, name, number = given.one
        with tempfile.TemporaryDirectory() as folder:
            one(engine, name, int(number), given.seed, given.answer, Path(folder))
        return 0
    names = given.targets.split(",")
    if unknown := sorted(set(names) - set(TARGETS)):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if util.find_spec("atheris") is None:
        print("atheris is not installed (pip install 'mpcd[fuzz]'): Hypothesis alone, with all inputs")
    return everything(names, given.scale, given.seed)


def everything(names: list[str], scale: float, seed: int) -> int:
    """Each target by each engine, one after the other."""
    print(f"seed {seed}", flush=True)
    print(f"{'target':<15}{'engine':<12}{'inputs':>10}{'seconds':>9}{'growth MiB':>12}", flush=True)
    total, failed = 0, []
    for name in names:
        _, plain, followed = TARGETS[name]
        shares = {HYPOTHESIS: plain, ATHERIS: followed}
        if util.find_spec("atheris") is None:
            shares = {HYPOTHESIS: plain + followed}
        for engine, share in shares.items():
            if not share:
                continue
            found = process(engine, name, max(1, int(share * scale)), seed)
            if isinstance(found, str):
                failed.append(f"{name} by {engine} (seed {seed}):\n{found}")
                print(f"{name:<15}{engine:<12}  FAILED", flush=True)
                continue
            total += found.inputs
            print(
                f"{name:<15}{engine:<12}{found.inputs:>10,}{found.seconds:>9.1f}{found.growth_mib:>12.1f}", flush=True
            )
            if found.growth_mib > GROWTH:
                failed.append(f"{name} by {engine} (seed {seed}): memory grew by {found.growth_mib} MiB")
    print(f"{total:,} inputs, {len(failed)} failures")
    for failure in failed:
        print(f"\n{failure}")
    return 1 if failed else 0


def process(engine: str, name: str, number: int, seed: int) -> Figures | str:
    """A process of its own; its figures, or its last words."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "tests.fuzz", "--one", engine, name, str(number), "--seed", str(seed)]
        done = subprocess.run(
            [*command, "--answer", str(answer)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=Path(__file__).parents[2],
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )
        if done.returncode or not answer.exists():
            return f"{done.stdout[-6000:]}\nended with status {done.returncode}"
        return Figures(**json.loads(answer.read_text()))


def one(engine: str, name: str, number: int, seed: int, answer: Path, folder: Path) -> None:
    """In a process of its own: the figures go to ``answer`` as soon as the last input is tried."""
    if engine == ATHERIS:
        by_atheris(name, number, seed, answer, folder)
        return
    target = load(name, folder)
    trying = Trying(target, number)
    harness.by_hypothesis(target, trying, number, seed)
    write(trying, answer)
    target.close()


def write(trying: Trying, answer: Path) -> None:
    answer.write_text(json.dumps(dataclasses.asdict(trying.figures())))


def by_atheris(name: str, number: int, seed: int, answer: Path, folder: Path) -> None:
    import atheris

    modules, _, _ = TARGETS[name]
    with atheris.instrument_imports(include=list(modules), enable_loader_override=False):
        for module in modules:
            with contextlib.suppress(ImportError):
                __import__(module)
        target = load(name, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for index, data in enumerate(target.seeds()):
        (corpus / str(index)).write_bytes(data)
    trying = Trying(target, number, alarm=False)

    def test(data: bytes) -> None:
        if trying.tried >= number:
            return
        trying(data)
        if trying.tried == number:
            write(trying, answer)  # libFuzzer ends the process, not us
            target.close()

    options = [f"-runs={2 * number}", f"-seed={seed}", f"-timeout={int(HANG)}", "-rss_limit_mb=4096", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", "-verbosity=0", str(corpus)], test)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
