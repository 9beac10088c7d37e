"""Heavy local work in a process of its own: ``python -m mpcd.daemon.worker``, one task, then gone.

The daemon never imports torch, never blocks on a folder of DICOM, and gets the memory back. The task comes as JSON on
stdin; answers are JSON lines on stdout: any number of ``{"progress": [stage, done, total]}``, then ``{"result": ...}``
or ``{"error": {code, message, hint, exit_status}}``. Whatever a library prints goes to stderr.

    {"task": "compile", name, path, arch, recipe, calibrate, labels, findings, out}   out: an empty folder
    {"task": "scan", path, labels, out}                                               out: the index to write
    {"task": "evaluate", model, path, labels}                                         model: the artifact's folder
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon import log
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.errors import BadInput, InternalError, MpcdError, PeerError
from mpcd.daemon.image import dataset, dicom, preprocess
from mpcd.daemon.image import recipe as recipes
from mpcd.daemon.image.recipe import Recipe

MAX_LINE = 256 * 1024 * 1024
MOST_CALIBRATION = 512  # images kept in memory to choose scales on

Image = npt.NDArray[np.float32]
Tell = Callable[[str, int, int], None]


class NeedsTorch(MpcdError):
    """This needs PyTorch, which is not installed here."""

    code = "needs_torch"
    exit_status = 9


# The daemon's side


async def run(task: dict[str, Any], job: Job, threads: int) -> Any:
    """The task's result. Raises what it failed with; kills the process when cancelled."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mpcd.daemon.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE,
        env=environment,
        start_new_session=True,  # Ctrl-C in the daemon's terminal is the daemon's, which kills this
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(task).encode())
        process.stdin.close()
        async for line in process.stdout:
            answer = json.loads(line)
            if "progress" in answer:
                stage, done, total = answer["progress"]
                job.report(task["task"], done, total, stage)
            elif "error" in answer:
                error = answer["error"]
                raise PeerError(error["code"], error["message"], error["hint"], error["exit_status"])
            else:
                return answer["result"]
        raise InternalError(
            f"the worker ended with status {await process.wait()} before it answered",
            "if the machine ran out of memory the kernel log says so; the daemon's log has the worker's last words",
        )
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


# The worker's side


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    log.configure()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def tell(stage: str, done: int, total: int) -> None:
        answer({"progress": [stage, done, total]})

    task = json.load(sys.stdin)
    try:
        answer(
            {
                "result": {"compile": compile_task, "scan": scan_task, "evaluate": evaluate_task}[task["task"]](
                    task, tell
                )
            }
        )
    except BrokenPipeError:  # the daemon was killed: nobody waits for this
        os._exit(1)
    except MpcdError as error:
        answer({"error": error.as_dict()})
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        missing = NeedsTorch(f"this needs {error.name}, which is not installed", "pip install 'mpcd[model]'")
        answer({"error": missing.as_dict()})
    except MemoryError:
        answer({"error": InternalError("the worker ran out of memory", "use a machine with more memory").as_dict()})
    except Exception as error:
        traceback.print_exc()
        answer({"error": InternalError(f"{type(error).__name__}: {error}", "the daemon's log has more").as_dict()})


def scan_task(task: dict[str, Any], tell: Tell) -> dict[str, Any]:
    found = dataset.scan(
        Path(task["path"]), Path(task["labels"]), lambda done, total: tell("reading images", done, total)
    )
    found.save(Path(task["out"]))
    return {}


def compile_task(task: dict[str, Any], tell: Tell) -> dict[str, Any]:
    from mpcd.daemon.model.build import compile_model

    recipe = recipes.load(task["recipe"])
    findings: list[str] | None = task.get("findings")
    labels: list[list[bool | None]] | None = None
    folder = Path(task["calibrate"])
    if task.get("labels"):
        found = dataset.scan(folder, Path(task["labels"]), lambda done, total: tell("reading images", done, total))
        found.check_recipe(recipe)
        findings = list(found.findings) if findings is None else findings
        known = found.labels_for(findings)
        entries = found.entries[:MOST_CALIBRATION]
        labels = [[known[entry.uid][finding] for finding in findings] for entry in entries]
        images: Iterator[Image] = (found.load_image(entry, recipe) for entry in entries)
    else:
        images = (image for _, image in _images(folder, recipe, tell, MOST_CALIBRATION))
    return compile_model(
        name=task["name"],
        source_path=Path(task["path"]),
        arch=task.get("arch"),
        recipe_toml=recipe.to_toml(),
        calibration=images,
        findings=findings,
        out_dir=Path(task["out"]),
        progress=tell,
        labels=labels,
    )


def evaluate_task(task: dict[str, Any], tell: Tell) -> dict[str, Any]:
    from mpcd.daemon.model.evaluate import evaluate

    folder = Path(task["model"])
    recipe = recipes.parse((folder / "recipe.toml").read_text("utf-8"), "the model's recipe")
    root = Path(task["path"])
    if task.get("labels"):
        found = dataset.scan(root, Path(task["labels"]), lambda done, total: tell("reading images", done, total))
        total = len(found.entries)
        images: Iterator[tuple[str, Image]] = ((e.uid, found.load_image(e, recipe)) for e in found.entries)
    else:
        total = len(_files(root))
        images = _images(root, recipe, lambda stage, done, total: None, None)
    return evaluate(folder, images, lambda done: tell("float and integer", done, total))


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _images(folder: Path, recipe: Recipe, tell: Tell, most: int | None) -> Iterator[tuple[str, Image]]:
    """(SOPInstanceUID, preprocessed image) of the usable files, evenly chosen where there are more than ``most``."""
    files = _files(folder)
    if most is not None and len(files) > most:
        files = [files[i * len(files) // most] for i in range(most)]
    usable = 0
    for done, path in enumerate(files, 1):
        try:
            image = dicom.read(path, window=recipe.range == "window")
        except dicom.DicomError:
            continue
        finally:
            tell("reading images", done, len(files))
        usable += 1
        yield image.uid, preprocess.prepare(image, recipe)
    if not usable:
        raise BadInput(f"{folder}: none of {len(files)} files is a usable image")


if __name__ == "__main__":
    main()
