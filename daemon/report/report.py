"""The report of a session, as plain data: what ``mpcctl report --json`` prints and a table is drawn from.

Keys, stable within one ``format``; everything is JSON (null where a value is undefined or unknown):

======================  ==============================================================================================
format                  1
confidence, method      0.95, "DeLong 1988"
session                 as given: id, peer, model, data set, reveal, times, software, ...
images                  number of images with secure outputs
findings                list, in the network's order, of
  finding               name
  n, positives          images with a known label, and those with the finding
  auroc, interval       of the secure outputs; [low, high]
  reason                why AUROC or interval are null, else null
  withheld              whether the finding has too few images with or without it (policy.toml's [cohort]): then n,
                        positives and all of the finding's results are null
  clear                 null, or the comparison on the images whose clear outputs are known as well:
    n, positives        of those images
    secure, integer,    {auroc, interval, reason} of the secure outputs, of the integer network and of the float model
    float               in the clear; integer and float null where that evaluation does not have them
    secure_integer,     {difference, interval, z, p, reason}: paired, secure minus the other
    secure_float
    largest_difference  largest |secure logit - float logit|, in logits
exactness               null without clear integer outputs, else
  images                images compared: secure and clear integer outputs both known
  exact_images          of these, images all of whose outputs are equal to the last bit
  different             SOPInstanceUIDs of the others
  largest_difference    largest |secure - clear| of an integer output, in units of the last place
  exact                 whether there is no other, and at least one was compared
largest_logit_difference  largest |secure logit - float logit| of all, null without clear float outputs
phases                  {phase: {seconds, bytes}} as given; offline: of the units used, whenever they were made
commitments             {model, dataset}: salted commitments
digests                 {recipe, network, software}
approvals               list of {party, by, at, ...}: who approved this run
======================  ==============================================================================================
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpcd.daemon.errors import BadInput
from mpcd.daemon.report.auroc import auroc, compare

FORMAT = 1
CONFIDENCE = 0.95

Json = dict[str, Any]
Labels = Mapping[str, Mapping[str, bool | None]]
Clear = Mapping[str, Mapping[str, Sequence[float]]]
Row = npt.NDArray[np.float64]


class ReportError(BadInput):
    """The results do not fit together."""

    code = "report"


def build(
    *,
    session: Mapping[str, Any],
    findings: Sequence[str],
    secure: Mapping[str, Sequence[int]],
    output_scale: float,
    labels: Labels,
    least: tuple[int, int] = (0, 0),
    clear: Clear | None = None,
    phases: Mapping[str, Mapping[str, float]],
    commitments: Mapping[str, str],
    digests: Mapping[str, str],
    approvals: Sequence[Mapping[str, Any]] = (),
) -> Json:
    """The report; the module's docstring lists its keys.

    ``secure``: {SOPInstanceUID: integer outputs in the order of ``findings``}; an output / ``output_scale`` is a logit.
    ``labels``: {SOPInstanceUID: {finding: True, False or None}}, an image or finding that is missing is unknown.
    ``least``: of a finding with fewer images with it, or fewer without it, nothing is told, not even how many.
    ``clear``: {SOPInstanceUID: {"integer": [...], "float": [...]}}, either may be missing; images without secure
    outputs are ignored. Raises ReportError where a row has the wrong length or a value is not finite.
    """
    if not (math.isfinite(output_scale) and output_scale > 0):
        raise ReportError(f"output scale {output_scale} is not positive")
    uids = sorted(secure)
    outputs = {uid: _row(secure[uid], findings, uid, "secure", whole=True) for uid in uids}
    integer = _clear_rows(clear, uids, findings, "integer")
    floats = _clear_rows(clear, uids, findings, "float")
    rows = []
    for column, finding in enumerate(findings):
        known = {u: bool(v) for u in uids if (v := labels.get(u, {}).get(finding)) is not None}
        positives = sum(known.values())
        if positives < least[0] or len(known) - positives < least[1]:
            rows.append(_withheld(finding, least))
            continue
        rows.append(
            {
                "finding": finding,
                "n": len(known),
                "positives": positives,
                "withheld": False,
                **_curve([outputs[u][column] for u in known], list(known.values())),
                "clear": _finding_clear(column, known, outputs, integer, floats, output_scale),
            }
        )
    return {
        "format": FORMAT,
        "confidence": CONFIDENCE,
        "method": "DeLong 1988",
        "session": dict(session),
        "images": len(uids),
        "findings": rows,
        "exactness": _exactness(outputs, integer) if integer else None,
        "largest_logit_difference": _largest(outputs, floats, output_scale),
        "phases": {phase: dict(values) for phase, values in phases.items()},
        "commitments": dict(commitments),
        "digests": dict(digests),
        "approvals": [dict(approval) for approval in approvals],
    }


def _withheld(finding: str, least: tuple[int, int]) -> Json:
    reason = f"withheld: fewer than {least[0]} images with it or {least[1]} without"
    nothing = dict.fromkeys(("n", "positives", "auroc", "interval", "clear"))
    return {"finding": finding, **nothing, "reason": reason, "withheld": True}


def _finding_clear(
    column: int,
    known: Mapping[str, bool],
    secure: Mapping[str, Row],
    integer: Mapping[str, Row],
    floats: Mapping[str, Row],
    scale: float,
) -> Json | None:
    """The comparison of one finding, on the labelled images for which every clear kind that there is knows outputs."""
    if not integer and not floats:
        return None
    uids = [u for u in known if (not integer or u in integer) and (not floats or u in floats)]
    truth = [known[u] for u in uids]
    ours = [secure[u][column] for u in uids]
    out: Json = {"n": len(uids), "positives": sum(truth), "secure": _curve(ours, truth)}
    for kind, rows in (("integer", integer), ("float", floats)):
        theirs = [rows[u][column] for u in uids] if rows else None
        out[kind] = None if theirs is None else _curve(theirs, truth)
        out[f"secure_{kind}"] = None if theirs is None else _paired(ours, theirs, truth)
    pairs = [(secure[u][column], row[column]) for u, row in floats.items()]
    out["largest_difference"] = max((abs(float(s / scale - f)) for s, f in pairs), default=None)
    return out


def _exactness(secure: Mapping[str, Row], integer: Mapping[str, Row]) -> Json:
    differences = {uid: float(np.abs(secure[uid] - row).max()) for uid, row in integer.items()}
    different = [uid for uid, largest in differences.items() if largest != 0]
    return {
        "images": len(integer),
        "exact_images": len(integer) - len(different),
        "different": different,
        "largest_difference": int(max(differences.values())),
        "exact": not different,
    }


def _largest(secure: Mapping[str, Row], floats: Mapping[str, Row], scale: float) -> float | None:
    return max((float(np.abs(secure[u] / scale - row).max()) for u, row in floats.items()), default=None)


def _curve(scores: Sequence[float], truth: Sequence[bool]) -> Json:
    result = auroc(scores, truth, CONFIDENCE)
    interval = None if result.interval is None else list(result.interval)
    return {"auroc": result.auroc, "interval": interval, "reason": result.reason}


def _paired(first: Sequence[float], second: Sequence[float], truth: Sequence[bool]) -> Json:
    result = dataclasses.asdict(compare(first, second, truth, CONFIDENCE))
    interval = result["interval"]
    return {
        "difference": result["difference"],
        "interval": None if interval is None else list(interval),
        "z": result["z"],
        "p": result["p"],
        "reason": result["reason"],
    }


def _clear_rows(clear: Clear | None, uids: Sequence[str], findings: Sequence[str], kind: str) -> dict[str, Row]:
    rows = {}
    for uid in uids:
        outputs = {} if clear is None else clear.get(uid, {})
        if not isinstance(outputs, Mapping):
            raise ReportError(f"the clear outputs of image {uid} are not named integer and float")
        if outputs.get(kind) is not None:
            rows[uid] = _row(outputs[kind], findings, uid, kind, whole=kind == "integer")
    return rows


def _row(values: Sequence[float], findings: Sequence[str], uid: str, kind: str, *, whole: bool) -> Row:
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ReportError(f"the {kind} outputs of image {uid} are not numbers") from error
    if row.shape != (len(findings),):
        raise ReportError(f"image {uid} has {row.size} {kind} outputs for {len(findings)} findings")
    if not np.isfinite(row).all() or (whole and (np.abs(row) > 2**53).any()):
        raise ReportError(f"the {kind} outputs of image {uid} are out of range")
    if whole and (row != np.rint(row)).any():
        raise ReportError(f"the {kind} outputs of image {uid} are not whole numbers")
    return row
