"""Estimates by the TPU compiler of a training step's time, for slices that need not exist.

    python -m benchmarks.tpu NAME ROW ...          # a row is CONFIG@SLICE@BATCH, such as cifar10:bfloat16@v5e:1x1@128,
                                                   # and may have flags, such as ...@--shard-update

NAME is that of a state of the code, such as "before": rows of each are kept in benchmarks/results/tpu.json, and all are
printed as a table.  libtpu compiles at its usual effort, which takes minutes for each; no TPU is needed, and none of it
has run.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import alternating
from scripts.preflight_table import TABLE_CONFIGS

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = alternating.RESULTS / "tpu.json"


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        sys.exit(__doc__)
    name, *rows = argv
    for row in rows:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results.setdefault(name, {})[row] = measure(row)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for line in table_lines(json.loads(RESULTS.read_text())):
        print(line)


def measure(row: str) -> dict[str, Any]:
    """Preflight report of one row, made in a new process."""
    config, where, batch, *flags = row.split("@")
    name, _, variant = config.partition(":")
    table_config = TABLE_CONFIGS[name]
    path = f"{table_config.path}:{variant}" if variant else table_config.path
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "report.json"
        subprocess.run(
            [
                sys.executable, "-m", "ddpm_jax", "preflight", path, "--shape", *map(str, table_config.shape),
                "--images", str(table_config.num_images), "--topology", where, "--batch", batch, "--effort", "0",
                "--programs", "train", "--out", str(out), *flags,
            ],
            cwd=ROOT, check=True,
        )  # fmt: skip
        report = json.loads(out.read_text())
    train = report["programs"]["train"]
    return {
        "commit": alternating.commit(), "devices": report["place"]["devices"], "flops": report["flops"],
        "cycles": train["cycles"], "seconds": train["estimated_seconds"], "utilisation": train["utilisation"],
        "memory": train["memory"]["peak"], "collectives": train["collectives"], "compiled in": train["seconds"],
        "versions": report["versions"],
    }  # fmt: skip


def table_lines(results: dict[str, dict[str, Any]]):
    """Markdown table, grouped by slice."""
    yield "| config, slice, batch | code | ms per step | of the peak | convolutions | products | sums | copies | rest |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in sorted({row for rows in results.values() for row in rows}):
        for name, rows in results.items():
            if row in rows:
                found = rows[row]
                total = sum(found["cycles"].values())
                kinds = ("convolutions", "matrix products", "sums", "copies", "the rest")
                shares = " | ".join(f"{found['cycles'].get(kind, 0) / total:.0%}" for kind in kinds)
                known = found["seconds"] is not None  # the clock
                time = f"{1000 * found['seconds']:.2f} | {found['utilisation']:.0%}" if known else "- | -"
                yield f"| {' '.join(row.split('@'))} | {name} ({found['commit']}) | {time} | {shares} |"


if __name__ == "__main__":
    main(sys.argv[1:])
