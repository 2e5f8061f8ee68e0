"""Trains and measures the missing rows of a table, and writes them to docs/results/TABLE.json.

    python -m experiments.run targets-digits [--jobs 2] [--minutes 60] [--data npz:FILE]

Each run is `train.py` in a new process, then `ddpm-jax evaluate`; interrupted runs continue.  With --jobs, runs share
the cores in parallel.  After --minutes no new run starts.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
import shlex
import sys
import threading
import time
from typing import Any

import tyro

from benchmarks import alternating
from benchmarks.evaluations import ROOT, read_numbers, run_program
from ddpm_jax import process
from experiments.tables import TABLES, Cell, Table

RESULTS = ROOT / "docs" / "results"


@dataclasses.dataclass(frozen=True)
class Arguments:
    table: tyro.conf.Positional[str]
    """Its name."""
    cells: tuple[str, ...] = ()
    """Only these of its rows."""
    seeds: tuple[int, ...] = ()
    """Only these of its seeds."""
    jobs: int = 1
    """Runs beside each other."""
    minutes: float = float("inf")
    """After how many minutes nothing new is begun."""
    data: str | None = None
    """Where the images are, if not where the config says."""
    runs: str = "runs/experiments"
    """The folder for the runs."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m experiments.run", args=argv)
    if args.table not in TABLES:
        sys.exit(f"no table {args.table!r}; known are {', '.join(TABLES)}")
    table, begun, lock = TABLES[args.table], time.monotonic(), threading.Lock()
    path = RESULTS / f"{args.table}.json"
    unknown = sorted(set(args.cells) - {cell.name for cell in table.cells})
    if unknown:
        sys.exit(f"no row {unknown[0]!r} in {args.table}; it has {'; '.join(cell.name for cell in table.cells)}")

    def fill(cell: Cell, seed: int) -> None:
        if time.monotonic() - begun > 60 * args.minutes:
            return
        found = find_same_run(table, cell, seed) or train_and_measure(
            table, cell, seed, pathlib.Path(args.runs) / args.table, args
        )
        with lock:
            save_row(path, cell.name, seed, found)
        print(f"{cell.name}, seed {seed}: {format_row(found)}", flush=True)

    rows = read_rows(path)
    missing = [
        (cell, seed)
        for seed in args.seeds or table.seeds
        for cell in table.cells
        if (not args.cells or cell.name in args.cells) and str(seed) not in rows.get(cell.name, {})
    ]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for done in [pool.submit(fill, *one) for one in missing]:
            done.result()


def find_same_run(table: Table, cell: Cell, seed: int) -> dict[str, Any] | None:
    """Result of the same run in another table with the same measurements, or None."""
    for name, other in TABLES.items():
        if (other.config, other.flags, other.measures) == (table.config, table.flags, table.measures):
            for twin in other.cells:
                found = read_rows(RESULTS / f"{name}.json").get(twin.name, {}).get(str(seed))
                if twin.flags == cell.flags and found:
                    return found
    return None


def train_and_measure(table: Table, cell: Cell, seed: int, folder: pathlib.Path, args: Arguments) -> dict[str, Any]:
    """Numbers of one run, with its settings, commit and machine."""
    run = folder / f"{'_'.join(flag.lstrip('-') for flag in cell.flags) or 'as-configured'}-{seed}"
    devices = ("--devices", str(max(1, process.num_cores() // args.jobs))) if args.jobs > 1 else ()
    data = ("--data.source", args.data) if args.data else ()
    config_args = (table.config, "--seed", str(seed), *table.flags, *cell.flags)
    began = time.monotonic()
    run_program("train.py", *config_args, *data, *devices, "--workdir", str(run))
    seconds = time.monotonic() - began
    numbers: dict[str, Any] = {}
    measures = {name: limit_steps(measure, cell.T) for name, measure in table.measures.items()}
    for name, measure in measures.items():
        out = run / "measured" / name
        run_program("-m", "ddpm_jax", "evaluate", str(run), *measure, "--out", str(out), *devices)
        numbers |= read_numbers(name, out)
    return {
        "numbers": numbers, "seconds of training": round(seconds, 1), "runs beside each other": args.jobs,
        "commit": alternating.commit(), **alternating.environment("jax", "flax", "optax", "numpy"),
        "commands": [
            f"python train.py {shlex.join(config_args)}",
            *(f"ddpm-jax evaluate RUN {shlex.join(measure)}" for measure in measures.values()),
        ],
    }  # fmt: skip


def limit_steps(measure: tuple[str, ...], T: int) -> tuple[str, ...]:
    """Flags of a measurement, with at most T steps."""
    return tuple(
        str(min(int(arg), T)) if before == "--steps" else arg
        for before, arg in zip(("", *measure), measure, strict=False)
    )


def read_rows(path: pathlib.Path) -> dict[str, Any]:
    """Rows by cell and seed, as `save_row` wrote them; none if there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def save_row(path: pathlib.Path, cell: str, seed: int, row: dict[str, Any]) -> None:
    """Adds a row to a file."""
    rows = read_rows(path)
    rows.setdefault(cell, {})[str(seed)] = row
    process.atomic_write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def format_row(row: dict[str, Any]) -> str:
    """Readable line of a row's numbers."""
    known = {name: value[0] for name, value in row["numbers"].items() if isinstance(value, list)}
    return ", ".join(f"{name} {value:.4g}" for name, value in known.items() if value is not None)


if __name__ == "__main__":
    main(sys.argv[1:])
