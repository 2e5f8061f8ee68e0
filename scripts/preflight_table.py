"""One table of many reports: which config fits which slice of TPUs.

    python -m scripts.preflight_table docs/preflight.md --run cifar10 --on v5litepod-16 v4-32

runs what is asked for and not there yet, one after the other in processes of their own, keeps each report in the JSON
file beside the page, and writes the table anew between the page's two marks.  Rows that were not run stand below it,
with the command for each.
"""

import dataclasses
import json
import math
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tyro

from ddpm_jax import config as configs
from ddpm_jax.preflight import topology

SLICES = (
    "v4-8", "v4-32", "v4-512", "v5litepod-4", "v5litepod-16", "v5litepod-256",
    "v5p-8", "v5p-32", "v5p-512", "v6e-4", "v6e-16", "v6e-256",
)  # fmt: skip
"""4, 16 and 256 chips of four generations."""

SMALLEST = ("v4-8", "v5litepod-4", "v5p-8", "v6e-4")
"""Where the sampler is compiled too: it has a tile on each chip and nothing between them, however many there are."""

MARKS = "<!-- rows: written by python -m scripts.preflight_table -->", "<!-- end of rows -->"


class TableConfig(NamedTuple):
    """A config of the table: its file, and the shape and number of its training images."""

    path: str
    shape: tuple[int, int, int]
    num_images: int


TABLE_CONFIGS = {
    "digits:wide": TableConfig("configs/digits.py:wide", (8, 8, 1), 1500),
    "mnist:wide": TableConfig("configs/mnist.py:wide", (28, 28, 1), 60_000),
    "cifar10": TableConfig("configs/cifar10.py", (32, 32, 3), 50_000),
    "cifar10:bfloat16": TableConfig("configs/cifar10.py:bfloat16", (32, 32, 3), 50_000),
    # a tenth of 30,000 images is held out; they are streamed, so the other 256x256 sets have the same programs
    "celebahq256": TableConfig("configs/celebahq256.py", (256, 256, 3), 27_000),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    page: tyro.conf.Positional[str]
    """The page with the table; its reports are in the JSON file beside it."""
    run: tuple[str, ...] = ()
    """Configs whose missing rows are to be run: digits:wide, cifar10, cifar10:bfloat16, celebahq256, ..."""
    on: tuple[str, ...] = SLICES
    """On which slices."""


def main(argv: list[str]) -> int:
    """Runs what is missing and writes page and JSON; exit status 0, or 2 for a wrong request or a failed run."""
    try:
        args = tyro.cli(Arguments, prog="python -m scripts.preflight_table", args=argv)
        unknown = [name for name in args.run if name not in TABLE_CONFIGS] + [
            name for name in args.on if name not in SLICES
        ]
        if unknown:
            raise ValueError(f"unknown {unknown[0]!r}; known are {', '.join([*TABLE_CONFIGS, *SLICES])}")
        page = pathlib.Path(args.page)
        rows = read_reports(page)
        for name in args.run:
            for slice_name in args.on:
                if (name, slice_name) not in rows:
                    rows[name, slice_name] = run_preflight(name, slice_name)
                    write_page(page, rows)
        write_page(page, rows)
    except (ValueError, FileNotFoundError) as error:
        print(f"table: {error}", file=sys.stderr)
        return 2
    return 0


def preflight_arguments(name: str, slice_name: str) -> list[str]:
    """The arguments of a row's preflight; a batch that does not divide is one image on each device."""
    table_config, devices = TABLE_CONFIGS[name], _num_devices(slice_name)
    batch = [] if configs.load(table_config.path).batch % devices == 0 else ["--batch", str(devices)]
    images = ["--shape", *map(str, table_config.shape), "--images", str(table_config.num_images)]
    programs = ["train", "sampler"] if slice_name in SMALLEST else ["train"]
    return [table_config.path, "--topology", slice_name, *images, *batch, "--programs", *programs]


def run_preflight(name: str, slice_name: str) -> dict[str, Any]:
    """The report of a row, made by a process of its own; its output is printed as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "report.json"
        arguments = preflight_arguments(name, slice_name)
        print(f"\n$ ddpm-jax preflight {shlex.join(arguments)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "ddpm_jax", "preflight", *arguments, "--out", str(out)])
        if done.returncode not in (0, 1):
            raise ValueError(f"the preflight of {name} on {slice_name} ended with status {done.returncode}")
        report = json.loads(out.read_text(encoding="utf-8"))
    return {"batch": report.pop("settings")["batch"], **report}


def read_reports(page: pathlib.Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The reports that are there, by config and slice."""
    path = page.with_suffix(".json")
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {(row["name"], row["slice"]): row["report"] for row in rows}


def write_page(page: pathlib.Path, rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Writes the reports, and the table between the marks of the page."""
    before, start_mark, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end_mark, after = rest.partition(MARKS[1])
    if not start_mark or not end_mark:
        raise ValueError(f"{page} must have the lines {MARKS[0]!r} and {MARKS[1]!r}: the table goes between them")
    order = [(name, where) for name in TABLE_CONFIGS for where in SLICES]
    reports = [
        {"name": name, "slice": where, "report": rows[name, where]} for name, where in order if (name, where) in rows
    ]
    page.with_suffix(".json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    there, missing = [key for key in order if key in rows], [key for key in order if key not in rows]
    table = "\n".join(markdown({key: rows[key] for key in there}))
    commands = "\n".join(f"ddpm-jax preflight {shlex.join(preflight_arguments(*key))}" for key in missing)
    left = f"\nNot run:\n\n```\n{commands}\n```\n" if missing else ""
    page.write_text(f"{before}{start_mark}\n\n{table}\n{left}\n{end_mark}{after}", encoding="utf-8")


def markdown(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """The lines of the table."""
    yield ("| config | slice, chips | batch, per chip | arguments | temporaries | most at one time | fits | FLOP per "
           "step and chip | collectives | sampler, beside training |")  # fmt: skip
    yield "|---" * 10 + "|"
    for (name, where), report in rows.items():
        yield "| " + " | ".join(cells(name, where, report)) + " |"


def cells(name: str, slice_name: str, report: dict[str, Any]) -> Sequence[str]:
    """A row of the table."""
    devices, batch, programs = report["place"]["devices"], report["batch"], report["programs"]
    own = configs.load(TABLE_CONFIGS[name].path).batch == batch
    train, sampler = programs["train"], programs.get("sampler")
    memory, limit = train["memory"], report["place"]["limit"]
    least = "at least " if memory is None and not train["seconds"] else ""
    needed = "more" if train["needed"] is None else f"{least}{_format_gib(train['needed'])}"
    return (
        name,
        f"{slice_name}, {devices}",
        f"{batch}{'' if own else '*'}, {batch // devices}",
        "-" if memory is None else _format_gib(memory["arguments"]),
        "-" if memory is None else _format_gib(memory["temporaries"]),
        f"{needed} of {_format_gib(limit)}",
        "yes" if train["fits"] else "**no**",
        _format_flops(report["flops"]),
        _collectives(train, devices),
        "as above" if sampler is None else "-" if sampler["needed"] is None else _format_gib(sampler["needed"]),
    )


def _collectives(train: dict[str, Any], devices: int) -> str:
    if train["memory"] is None:
        return "-"
    message = ", ".join(f"{each['count']} {each['kind']}" for each in train["collectives"]) or "none"
    return message + (f" over all {devices}" if train["collectives_span_all"] else ", **not over all**")


def _format_gib(number: float) -> str:
    """Three digits of GiB."""
    return f"{number / 2**30:.{max(0, 2 - math.floor(math.log10(max(number / 2**30, 1e-3))))}f} GiB"


def _format_flops(number: float | None) -> str:
    """Four digits of G, 10^9, and all of them before the point."""
    return "-" if number is None else f"{number / 1e9:{',.0f' if number >= 1e12 else '.4g'}} G"


def _num_devices(slice_name: str) -> int:
    """Devices of a slice of the table: one for each chip."""
    return math.prod(map(int, topology.find_slice(slice_name).name.partition(":")[2].split("x")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
