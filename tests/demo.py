"""make demo: a hospital and a vendor on this machine, from x-rays to the report, with the public commands only.

Every command is echoed before it runs. What is special to a demonstration: the x-rays are synthetic, the model is
fitted to them on the spot, and at the end the vendor's clear results are laid beside the secure ones, which nobody
could do with real secrets.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
COLUMNS = 100


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


class Party:
    """One side: its own state folder, its own daemon, and the command line speaking to it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.port = free_port()
        self.daemon: subprocess.Popen[bytes] | None = None
        self.env = {
            **os.environ,
            "MPCD_STATE": str(self.folder),
            # Compiled kernels are the same for both; and one core a party.
            "NUMBA_CACHE_DIR": str(folder / "kernels"),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
        }

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mpcd", "--name", self.name, "--listen", f"127.0.0.1:{self.port}"]
        print(f"{self.name}$ {shlex.join(command)} 2>{self.folder / 'log'} &", flush=True)
        with (self.folder / "log").open("ab") as log:
            self.daemon = subprocess.Popen([BIN / command[0], *command[1:]], env=self.env, stderr=log)
        deadline = time.monotonic() + 60
        while subprocess.run([BIN / "mpcctl", "id"], env=self.env, capture_output=True, check=False).returncode:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{self.name}'s daemon did not start; see {self.folder / 'log'}")
            time.sleep(0.2)

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait(60)

    def run(self, *arguments: str | Path) -> None:
        """Run mpcctl, its output shown."""
        words = [str(a) for a in arguments]
        print(
            f"{self.name}$ mpcctl {' '.join(shlex.quote(w if len(w) < 90 else w[:40] + '...') for w in words)}",
            flush=True,
        )
        status = subprocess.run([BIN / "mpcctl", *words], env=self.env, check=False).returncode
        if status:
            sys.exit(f"mpcctl {words[0]} failed with status {status}; {self.name}'s log is {self.folder / 'log'}")

    def ask(self, *arguments: str) -> dict:
        """Run mpcctl --json, its result used."""
        print(f"{self.name}$ mpcctl {shlex.join(arguments)} --json", flush=True)
        done = subprocess.run([BIN / "mpcctl", *arguments, "--json"], env=self.env, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(f"mpcctl {arguments[0]} failed with status {done.returncode}")
        return json.loads(done.stdout)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python(*arguments: str | Path) -> None:
    words = [str(a) for a in arguments]
    print(f"$ python -m {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6, help="the hospital's x-rays (default 6)")
    parser.add_argument("--training", type=int, default=64, help="the vendor's x-rays (default 64)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo")
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    hospital, vendor = Party("hospital", folder), Party("vendor", folder)
    began = time.monotonic()
    try:
        say("1. The hospital has x-rays, the vendor has a model (both made here, neither real)")
        python("mpcd.daemon.image.phantom", folder / "x-rays", "--images", str(options.images), "--seed", "1")
        python("mpcd.daemon.image.phantom", folder / "public", "--images", "24", "--seed", "2")
        model = folder / "chexnet.safetensors"
        python("mpcd.daemon.model.demo_model", model, "--images", str(options.training), "--seed", "1001")

        say("2. Two daemons, each with its own state folder")
        hospital.start()
        vendor.start()

        say("3. Pair: each adds the other's invite (over the telephone they would compare fingerprints)")
        invites = {party: party.ask("id")["invite"] for party in (hospital, vendor)}
        hospital.run("peer", "add", invites[vendor], "--address", f"127.0.0.1:{vendor.port}")
        vendor.run("peer", "add", invites[hospital])
        hospital.run("peer", "list")

        say("4. Vendor: compile the model to an integer network")
        names = "Cardiomegaly,Effusion,Mass"
        vendor.run(
            "model", "add", model, "--arch", "densenet121", "--recipe", "imagenet-224",
            "--calibrate", folder / "public" / "dicom", "--findings", names,
        )  # fmt: skip

        say("5. Hospital: index the x-rays")
        hospital.run(
            "dataset",
            "add",
            folder / "x-rays" / "dicom",
            "--labels",
            folder / "x-rays" / "labels.csv",
            "--name",
            "site-a",
        )

        say("6. Night: correlated randomness, made ahead, used once")
        hospital.run("model", "list", "--peer", "vendor")
        hospital.run("offline", "make", "--peer", "vendor", "--model", "chexnet", "--images", str(options.images))

        say("7. Day: the hospital proposes a run, the vendor approves exactly that run")
        started = hospital.ask(
            "session", "start", "--peer", "vendor", "--model", "chexnet", "--dataset", "site-a", "--detach"
        )
        session = started["session"]["id"][:12]
        vendor.run("session", "show", session)
        vendor.run("approve", session)
        hospital.run("session", "watch", session)

        say("8. The report; and, as both sides are ours here, the secure result beside the clear one")
        clear = folder / "clear.json"
        vendor.run("model", "evaluate", "chexnet", "--images", folder / "x-rays" / "dicom", "--out", clear)
        hospital.run("report", session, "--clear", clear, "--out", folder / "report.json")
        hospital.run("offline", "status")

        exactness = json.loads((folder / "report.json").read_text())["exactness"]
        say(f"{time.monotonic() - began:.0f} s in all. The report is {folder / 'report.json'}.")
        if not exactness["exact"]:
            sys.exit("the secure result is not the integer network's: this is a bug")
    finally:
        say("9. Stop both daemons")
        hospital.stop()
        vendor.stop()


if __name__ == "__main__":
    main()
