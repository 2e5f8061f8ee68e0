"""Evaluations of trained runs, started as programs, and the columns of the tables that show them."""

import json
import math
import pathlib
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
DISTANCE = "Fréchet distance"
BY_T = "RMSE of x_0 by t, 0..255"
AGREEMENT = "share that shows the requested digit"
COLUMNS = {"bits/dim": "bits/dim", DISTANCE: DISTANCE, "precision": "precision, k=3",
           "recall": "recall, k=3", "confidence > 0.9": "share with p > 0.9"}  # fmt: skip
"""Columns of the tables of runs: heading -> name of the number."""


class ProgramFailed(RuntimeError):
    """A program ended with an error; the message holds its output."""


def run_program(*args: str) -> None:
    """Runs a program of the project.

    Raises:
        ProgramFailed: if its exit status is not 0, with the end of its output.
    """
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        output = (done.stdout + done.stderr)[-3000:]
        raise ProgramFailed(f"python {shlex.join(args)} ended with status {done.returncode}:\n{output}")


def read_numbers(name: str, out: pathlib.Path) -> dict[str, Any]:
    """Numbers of an evaluation: name -> value, standard error; for "errors", the RMSE of x_0 by t."""
    (path,) = [path for path in out.glob("*.json") if path.name != "x0_errors.json"]
    if name == "errors":
        with np.load(path.with_suffix(".npz")) as found:
            # the errors ascend from the last call's, at the smallest time above 0
            times, squared = found["chain"][-2::-1], found["errors"] / len(found["total"])
        by_t = {str(t): round(127.5 * math.sqrt(e), 4) for t, e in zip(times, squared, strict=True)}
        return {BY_T: by_t}
    return {n["name"]: [n["value"], n["error"]] for n in json.loads(path.read_text())["numbers"]}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error, which is nan for one seed."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.fmean(values), error
