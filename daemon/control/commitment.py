"""``model.open``, ``dataset.open``, ``commitment.verify``: commitments opened to an auditor (daemon/commitments.py)."""

from __future__ import annotations

from typing import Any

from mpcd.daemon import commitments
from mpcd.daemon.context import Context, aside
from mpcd.daemon.control.jobs import Job
from mpcd.daemon.control.server import Method, Params


class CommitmentMethods:
    """One method each."""

    def __init__(self, context: Context) -> None:
        self._library = context.library
        self.methods: dict[str, Method] = {
            "model.open": self._open_model,
            "dataset.open": self._open_dataset,
            "commitment.verify": self._verify,
        }

    async def _open_model(self, params: Params, job: Job) -> dict[str, Any]:
        name = params.text("name")
        params.end()
        return {"opening": await aside(commitments.open_model, self._library, name)}

    async def _open_dataset(self, params: Params, job: Job) -> dict[str, Any]:
        name = params.text("name")
        params.end()
        return {"opening": await aside(commitments.open_dataset, self._library, name)}

    async def _verify(self, params: Params, job: Job) -> dict[str, Any]:
        file, expected, path = params.path("file"), params.optional_text("expected"), params.optional_path("path")
        params.end()
        job.report("verify", text="the opening, and the files it names" if path else "the opening")
        return {"verified": await aside(commitments.verify, file, expected, path)}
