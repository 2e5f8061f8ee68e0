"""Time and memory of a training step by batch, resolution and channels, and images per second by number of chips.

    python -m benchmarks.step_cost [--figure docs/step_cost.png]

The network is that of configs/mnist.py:wide.  Each point is `ddpm-jax preflight` on this machine, in a
process of its own: steps per second as measured, and memory by the compiler's analysis.  Devices are TPU chips by the
compiler's estimate, as far as benchmarks/results/tpu.json has them; nothing there has run.  Points are kept in
benchmarks/results/step_cost.json, and only what is missing is measured.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import tyro

from benchmarks import alternating
from benchmarks.tpu import RESULTS as TPU

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = alternating.RESULTS / "step_cost.json"
SIDE, BATCH, CHANNELS = 16, 16, 32
AXES = {"batch": (4, 8, 16, 32, 64, 128), "side": (8, 16, 32, 64), "channels": (16, 32, 64, 128)}
"""What is varied while the others are as above."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    figure: str = "docs/step_cost.png"
    """Where the figure goes."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m benchmarks.step_cost", args=argv)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"made": {}, "points": {}}
    results["made"] = {"command": "python -m benchmarks.step_cost", **alternating.environment("jax", "flax")}
    for axis, values in AXES.items():
        for value in values:
            name = f"{axis} {value}"
            if name not in results["points"]:
                results["points"][name] = measure(**{axis: value})
                print(name, results["points"][name], flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    draw(ROOT / args.figure, results["points"], json.loads(TPU.read_text()) if TPU.exists() else {})


def measure(batch: int = BATCH, side: int = SIDE, channels: int = CHANNELS) -> dict[str, Any]:
    """Seconds and bytes of a training step on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "report.json"
        flags = {"batch": batch, "net.channels": channels, "images": 1024, "programs": "train", "out": out}
        subprocess.run(
            [sys.executable, "-m", "ddpm_jax", "preflight", "mnist:wide", "--shape", str(side), str(side), "1",
             *(part for name, value in flags.items() for part in (f"--{name}", str(value)))],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        report = json.loads(out.read_text())
    return {
        "commit": alternating.commit(), "seconds": 1 / report["measured"]["steps_per_s"],
        "bytes": report["measured"]["analysis"], "flops": report["flops"] * report["place"]["devices"],
    }  # fmt: skip


def draw(path: pathlib.Path, points: dict[str, Any], tpu: dict[str, Any]) -> None:
    """The figure: a column for each axis, and the chips."""
    from ddpm_jax.evaluate.plots import Panel, write_panels

    labels = {"batch": "images in a step", "side": "side of an image", "channels": "channels of the first level"}
    fixed = {"side": f"{SIDE}x{SIDE}", "batch": f"batch {BATCH}", "channels": f"{CHANNELS} channels"}
    found = []
    for axis, values in AXES.items():
        of = {name: [points[f"{axis} {value}"][quantity] / unit for value in values]
              for name, quantity, unit in (("ms per step", "seconds", 1e-3), ("MB", "bytes", 1e6))}  # fmt: skip
        title = ", ".join(text for name, text in fixed.items() if name != axis)
        found.append(Panel(values, of, labels[axis], "ms, MB", title, xscale="log", yscale="log"))
    rates: dict[str, dict[int, float]] = {}
    for state in tpu.values():  # of a row, the last state of the code that has it
        for row, one in state.items():
            if not one["seconds"]:  # the clock is not published
                continue
            config, where, batch = row.split("@")
            each = int(batch) // one["devices"]
            line = rates.setdefault(f"{config}, {where.partition(':')[0]}, {each} images each", {})
            line[one["devices"]] = int(batch) / one["seconds"]
    chips = sorted({devices for line in rates.values() for devices in line})
    lines = {name: [line.get(n, float("nan")) for n in chips] for name, line in rates.items() if len(line) > 1}
    if lines:
        title = next(iter(lines)) if len(lines) == 1 else ""
        found.append(
            Panel(chips, lines, "TPU chips", "images per second, estimated", title, xscale="log", yscale="log")
        )
    write_panels(path, found)


if __name__ == "__main__":
    main(sys.argv[1:])
