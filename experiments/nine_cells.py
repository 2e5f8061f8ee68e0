"""Nine cells: what a network predicts, and whose squared error the loss is; for equal minutes of training.

    python -m experiments.nine_cells cells-digits [--data npz:FILE]

Prints the training steps that each network takes in a minute of one core, in turns: `tables.NETWORKS`.  The seconds are
those that the process used, so other load of the machine counts little.  `experiments.run` makes the rows.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tyro

from benchmarks.evaluations import COLUMNS, DISTANCE, ROOT, mean_and_error
from benchmarks.step_variants import make_turn
from ddpm_jax import config as configs
from ddpm_jax.evaluate import protocol
from experiments.tables import NETWORKS, QUANTITIES, TABLES, Cell, Table

WORST = 10.0
"""Ratio to the best cell from which on all cells have the same colour."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    table: tyro.conf.Positional[str]
    """Its name."""
    data: str | None = None
    """Where the images are, if not where the config says."""
    rounds: int = 5
    """Turns of each network after the first one, which compiles."""
    steps: int = 20
    """Training steps of a turn."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m experiments.nine_cells", args=argv)
    if args.table not in NETWORKS:
        sys.exit(f"no networks of {args.table!r}; known are {', '.join(NETWORKS)}")
    from ddpm_jax import process

    process.initialize(devices=1)
    table, turns = TABLES[args.table], {}
    for network in NETWORKS[args.table]:
        cell = next(cell for cell in table.cells if cell.name.startswith(f"{network.name}, "))
        turns[network.name] = make_turn(config_of(table, cell, args.data), args.steps)
        turns[network.name]()
    seconds = {name: [] for name in turns}
    for i in range(args.rounds):
        for name in turns if i % 2 else reversed(turns):
            begun = time.process_time()
            turns[name]()
            seconds[name].append((time.process_time() - begun) / args.steps)
    for name, each in seconds.items():
        low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
        print(f"{name}: {60 / middle:.0f} steps a minute ({60 / high:.0f} to {60 / low:.0f})", flush=True)


def config_of(table: Table, cell: Cell, source: str | None = None) -> configs.Config:
    """Config that `train.py` makes of a cell."""
    flags = (*table.flags, *cell.flags, *(("--data.source", source) if source else ()))
    return tyro.cli(configs.Config, args=flags, default=configs.load(ROOT / (cell.config or table.config)))


def figure(name: str, found: Mapping[str, Any]) -> Any:
    """Matplotlib figure: nine cells for each measured network and number, coloured by the ratio to its best cell."""
    from matplotlib.figure import Figure

    measured = {cell.partition(", ")[0] for cell in found}
    networks, kinds = [each for each in NETWORKS[name] if each.name in measured], ("bits/dim", DISTANCE)
    made = Figure(figsize=(2.5 * len(networks) + 1.4, 2.4 * len(kinds)), dpi=150, layout="constrained")
    axes = made.subplots(len(kinds), len(networks), sharex=True, sharey=True, squeeze=False)
    for row, kind in zip(axes, kinds, strict=True):
        for axis, network in zip(row, networks, strict=True):
            cells = [cell.name for cell in TABLES[name].cells if cell.name.startswith(f"{network.name}, ")]
            seeds = [[seed["numbers"][COLUMNS[kind]][0] for seed in found.get(cell, {}).values()] for cell in cells]
            values = [mean_and_error(each) if each else (np.nan, np.nan) for each in seeds]
            mean = np.reshape([value for value, _ in values], (3, 3))
            best = np.nanmin(mean) if np.isfinite(mean).any() else np.nan
            image = axis.imshow(np.log10(mean / best), cmap="viridis_r", vmin=0, vmax=np.log10(WORST))
            for i, (value, error) in enumerate(values):
                if np.isfinite(value):
                    # of one seed three digits, of several those that the error leaves
                    shown = value if np.isfinite(error) else float(f"{value:.3g}")
                    text = protocol.format_value(shown, error).replace(" ± ", "\n± ")
                    colour = "w" if value / best > WORST**0.5 else "k"
                    axis.text(i % 3, i // 3, text, ha="center", va="center", fontsize=7, color=colour)
            axis.set_title(f"{network.name}\n{kind}", fontsize="small")
            axis.set_xticks(range(3), QUANTITIES.values())
            axis.set_yticks(range(3), QUANTITIES.values())
    made.supxlabel("the loss is the squared error of", fontsize="small")
    made.supylabel("the network predicts", fontsize="small")
    bar = made.colorbar(image, ax=axes, ticks=[0, np.log10(2), np.log10(5), 1])
    bar.ax.set_yticklabels(["best", "2 times", "5 times", "10 times"])
    return made


if __name__ == "__main__":
    main(sys.argv[1:])
