"""Trains and measures the missing rows of a table, and writes them to docs/results/TABLE.json.

    python -m experiments.run targets-digits [--jobs 2] [--minutes 60] [--data npz:FILE]

Each run is `train.py` in a new process, then `ddpm-jax evaluate`; interrupted runs continue.  With --jobs, runs share
the cores in parallel.  After --minutes no new run starts.
"""

import concurrent.futures
import dataclasses
import json
import math
import pathlib
import shlex
import sys
import threading
import time
from typing import Any

import numpy as np
import tyro

from benchmarks import alternating
from benchmarks.evaluations import AGREEMENT, ROOT, read_numbers, run_program
from ddpm_jax import process
from experiments.tables import TABLES, Cell, Table, nine_cells

RESULTS = ROOT / "docs" / "results"
MINUTES_AROUND = 2.0
"""Of compilation and measurements, as long as no run of a table is known."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    table: tyro.conf.Positional[str]
    """Its name."""
    cells: tuple[str, ...] = ()
    """Only these of its rows, by name or by its beginning up to a comma."""
    seeds: tuple[int, ...] = ()
    """Only these of its seeds."""
    jobs: int = 1
    """Runs beside each other."""
    minutes: float = float("inf")
    """After how many minutes nothing new is begun."""
    run_minutes: float | None = None
    """Minutes of training for each run of the nine cells; results are then kept in RUNS and not shown on the page."""
    data: str | None = None
    """Where the images are, if not where the config says."""
    runs: str = "runs/experiments"
    """The folder for the runs."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m experiments.run", args=argv)
    if args.table not in TABLES:
        sys.exit(f"no table {args.table!r}; known are {', '.join(TABLES)}")
    table, begun, lock = TABLES[args.table], time.monotonic(), threading.Lock()
    path, folder = RESULTS / f"{args.table}.json", pathlib.Path(args.runs) / args.table
    if args.run_minutes is not None:
        if not table.minutes:
            sys.exit(f"--run-minutes is for tables of runs of equal minutes, {args.table} is none")
        table = nine_cells(args.table, args.run_minutes)
        folder = folder.with_name(f"{args.table}-{args.run_minutes:g}-minutes")
        path = folder.with_name(f"{folder.name}.json")
    cells = select_cells(args.table, table, args.cells)

    def fill(cell: Cell, seed: int) -> None:
        if time.monotonic() - begun > 60 * args.minutes:
            return
        found = find_same_run(table, cell, seed) or train_and_measure(table, cell, seed, folder, args)
        with lock:
            save_row(path, cell.name, seed, found)
        print(f"{cell.name}, seed {seed}: {format_row(found)}", flush=True)

    rows = read_rows(path)
    missing = [
        (cell, seed) for seed in args.seeds or table.seeds for cell in cells if str(seed) not in rows.get(cell.name, {})
    ]
    print(describe_duration(table, rows, len(missing), args.jobs), flush=True)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for done in [pool.submit(fill, *one) for one in missing]:
            done.result()


def select_cells(name: str, table: Table, wanted: tuple[str, ...]) -> list[Cell]:
    """Cells of these names, or whose names begin so and go on with a comma; all, if there are none.

    Raises:
        SystemExit: if the table has no such cell.
    """
    names = [cell.name for cell in table.cells]
    found = {text: {text} & set(names) or {name for name in names if name.startswith(f"{text}, ")} for text in wanted}
    for text in wanted:
        if not found[text]:
            sys.exit(f"no row {text!r} in {name}; it has {'; '.join(names)}")
    return [cell for cell in table.cells if not wanted or any(cell.name in each for each in found.values())]


def describe_duration(table: Table, rows: dict[str, Any], missing: int, jobs: int) -> str:
    """Number of missing runs and, if runs take equal minutes, the hours that they take: as long as those known."""
    found = [row for seeds in rows.values() for row in seeds.values()] if table.minutes else []
    known = [row["seconds of training"] + row["seconds of measuring"] for row in found]
    minutes = sum(known) / len(known) / 60 if known else table.minutes + MINUTES_AROUND
    hours = f" of about {minutes:.1f} minutes, {missing * minutes / 60 / jobs:.2g} hours" if table.minutes else ""
    return f"{missing} runs missing{hours}"


def find_same_run(table: Table, cell: Cell, seed: int) -> dict[str, Any] | None:
    """Result of the same run in another table with the same measurements, or None."""
    for name, other in TABLES.items():
        if (other.flags, other.measures) == (table.flags, table.measures):
            for twin in other.cells:
                found = read_rows(RESULTS / f"{name}.json").get(twin.name, {}).get(str(seed))
                same = (twin.config or other.config, twin.flags) == (cell.config or table.config, cell.flags)
                if same and found:
                    return found
    return None


def train_and_measure(table: Table, cell: Cell, seed: int, folder: pathlib.Path, args: Arguments) -> dict[str, Any]:
    """Numbers of one run, with its settings, commit and machine."""
    parts = [flag.lstrip("-") for flag in cell.flags]
    if cell.config not in ("", table.config):
        parts.insert(0, pathlib.Path(cell.config).name)
    run = folder / f"{'_'.join(parts) or 'as-configured'}-{seed}"
    devices = ("--devices", str(max(1, process.num_cores() // args.jobs))) if args.jobs > 1 else ()
    data = ("--data.source", args.data) if args.data else ()
    config_args = (cell.config or table.config, "--seed", str(seed), *table.flags, *cell.flags)
    began = time.monotonic()
    run_program("train.py", *config_args, *data, *devices, "--workdir", str(run))
    seconds = time.monotonic() - began
    numbers: dict[str, Any] = {}
    began_measuring = time.monotonic()
    measures = {name: limit_steps(measure, cell.T) for name, measure in table.measures.items()}
    if cell.texts:
        measures["samples"] = (*measures["samples"], "--text", *cell.texts)
    for name, measure in measures.items():
        out = run / "measured" / name
        run_program("-m", "ddpm_jax", "evaluate", str(run), *measure, "--out", str(out), *devices)
        numbers |= read_numbers(name, out)
    if cell.texts:
        numbers[AGREEMENT] = read_agreement(run / "measured" / "samples")
    return {
        "numbers": numbers, "seconds of training": round(seconds, 1),
        "seconds of measuring": round(time.monotonic() - began_measuring, 1), "runs beside each other": args.jobs,
        "commit": alternating.commit(), **alternating.environment("jax", "flax", "optax", "numpy"),
        "commands": [
            f"python train.py {shlex.join(config_args)}",
            *(f"ddpm-jax evaluate RUN {shlex.join(measure)}" for measure in measures.values()),
        ],
    }  # fmt: skip


def read_agreement(out: pathlib.Path) -> list[float]:
    """Share of the samples of an evaluation that show the requested digit, i mod 10 in sample i; its standard error."""
    from ddpm_jax.metrics import classifier
    from ddpm_jax.pipeline import image_parts

    (folder,) = (out / "draws").iterdir()
    images = np.concatenate([*image_parts.read_chunks(folder, 0, sys.maxsize)])
    shown = classifier.load("digits")(images).probabilities.argmax(1)
    share = float(np.mean(shown == np.arange(len(shown)) % 10))
    return [share, math.sqrt(share * (1 - share) / len(shown))]


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
