"""Tables of docs/experiments.md and figures of it and of docs/results.md, from docs/results/ and benchmarks/results/.

    python -m experiments.results_page

A table is between a line `<!-- NAME -->` and a line `<!-- end -->`; the text around it is written by hand.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import alternating
from benchmarks.compare_trainers import baseline_table
from benchmarks.evaluations import AGREEMENT, BY_T, COLUMNS, DISTANCE, ROOT, mean_and_error
from ddpm_jax import data
from ddpm_jax.evaluate import plots, protocol
from ddpm_jax.evaluate.plots import Panel, write_panels
from experiments import nine_cells
from experiments.manifold import COVERAGE, DIMENSIONS, IN_PLANE, NOISE, OFF_PLANE, TARGETS, TOTAL, spiral
from experiments.one_step_denoising import START_FRACTIONS
from experiments.run import RESULTS, read_rows
from experiments.tables import NETWORKS, TABLES

PAGE = ROOT / "docs" / "experiments.md"
ERROR = "RMSE, 0..255"
COMPARED = ("objectives-digits", "schedules-digits", "training-digits", "recipe-digits")
"""Tables whose rows docs/results.md shows beside each other."""
X0_ERROR_FRACTIONS = (0.1, 0.25, 0.5, 0.75)
"""Fractions of T at which the tables give the error of x_0."""


def main() -> None:
    made = {name: run_table(name) for name in TABLES} | {"jump-digits": one_step_table("jump-digits")}
    trainers = read_rows(alternating.RESULTS / "compare_trainers.json")
    made["compare_trainers"] = baseline_table(trainers)
    for name in NETWORKS:
        if found := read_rows(RESULTS / f"{name}.json"):
            plots.save_figure(RESULTS / f"{name}.png", nine_cells.figure(name, found))
            made[f"{name}-figure"] = [f"![bits/dim and Fréchet distance of the nine cells](results/{name}.png)"]
    made |= {name: manifold_table(read_rows(RESULTS / f"{name}.json")) for name in ("manifold", "manifold-long")}
    page = PAGE.read_text()
    for name, lines in made.items():
        if lines:
            page = fill_table(page, name, lines)
    PAGE.write_text(page)
    for name in TABLES:
        if name.startswith("targets-") and (found := read_rows(RESULTS / f"{name}.json")):
            write_panels(RESULTS / f"{name}.png", target_panels(found))
    compared = {name: quality_by_row(name) for name in COMPARED} | {"trainers-digits": quality_by_trainer(trainers)}
    for name, rows in compared.items():
        if rows:
            plots.save_figure(RESULTS / f"{name}.png", quality_figure(rows))
    if found := read_rows(RESULTS / "jump-digits.json"):
        write_panels(RESULTS / "jump-digits.png", nfe_panels(found))
    if (images := RESULTS / "jump-digits-images.npz").exists():
        with np.load(images) as arrays:
            plots.save_figure(images.with_suffix(".png"), one_step_figure(arrays))
    if (samples := RESULTS / "manifold-samples.npz").exists():
        with np.load(samples) as arrays:
            figure = manifold_figure(read_rows(RESULTS / "manifold.json"), arrays)
            plots.save_figure(RESULTS / "manifold.png", figure)


def fill_table(page: str, name: str, lines: Iterable[str]) -> str:
    """Page text with a table put between its markers.

    Raises:
        ValueError: if the page has no such markers.
    """
    markers = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not markers.search(page):
        raise ValueError(f"the page has no place for {name}: a line <!-- {name} --> and a line <!-- end -->")
    body = "".join(f"{line}\n" for line in lines)
    return markers.sub(lambda found: found[1] + body + found[2], page)


def run_table(name: str) -> list[str]:
    """Markdown table of a table's runs: a row for each measured cell."""
    found = read_rows(RESULTS / f"{name}.json")
    cells = [cell for cell in TABLES[name].cells if cell.name in found]
    if not cells:
        return []
    timed = ["seconds"] if TABLES[name].timed else []
    columns = COLUMNS | ({"requested digit": AGREEMENT} if any(cell.texts for cell in cells) else {})
    heads = [*columns, *(f"RMSE at {part:g} T" for part in X0_ERROR_FRACTIONS), *timed, "seeds", "commit"]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for cell in cells:
        seeds = list(found[cell.name].values())
        numbers = [seed["numbers"] for seed in seeds]
        values = [
            protocol.format_value(*mean_and_error([each[key][0] for each in numbers])) if key in numbers[0] else "-"
            for key in columns.values()
        ]
        values += [
            protocol.format_value(*mean_and_error([error_near(each[BY_T], part * cell.T) for each in numbers]))
            for part in X0_ERROR_FRACTIONS
        ]
        if timed:
            values.append(protocol.format_value(*mean_and_error([seed["seconds of training"] for seed in seeds])))
        commits = ", ".join(sorted({seed["commit"] for seed in seeds}))
        lines.append(f"| {cell.name} | {' | '.join(values)} | {len(seeds)} | {commits} |")
    return lines


def quality_by_row(name: str) -> dict[str, list[dict[str, Any]]]:
    """Numbers of each seed by row of a table, of the rows with all seeds."""
    found, table = read_rows(RESULTS / f"{name}.json"), TABLES[name]
    rows = [cell.name for cell in table.cells if len(found.get(cell.name, {})) == len(table.seeds)]
    return {row: [seed["numbers"] for seed in found[row].values()] for row in rows}


def quality_by_trainer(found: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Numbers of each seed by trainer, after five minutes on digits."""
    seeds = list(found.get("digits, 5 minutes", {}).values())
    return {name: [each[name] for each in seeds if name in each] for seed in seeds for name in seed}


def quality_figure(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Matplotlib figure: bits/dim and Fréchet distance of each row, means with standard errors, the best one filled."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, 0.9 + 0.3 * len(rows)), dpi=150, layout="constrained")
    for axis, kind in zip(made.subplots(1, 2, sharey=True), ("bits/dim", DISTANCE), strict=True):
        values = [mean_and_error([each[COLUMNS[kind]][0] for each in seeds]) for seeds in rows.values()]
        best = min(mean for mean, _ in values)
        for i, (mean, error) in enumerate(values):
            axis.errorbar(mean, i, xerr=error, fmt="o", color="C0", capsize=3, mfc="C0" if mean == best else "w")
            axis.annotate(protocol.format_value(mean, error), (mean, i), xytext=(0, 5), textcoords="offset points",
                          ha="center", fontsize=6.5, color="0.3")  # fmt: skip
        if max(mean for mean, _ in values) > 5 * best:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(ticker.ScalarFormatter())
            axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.set_title(f"{kind} (less is better)", fontsize="medium")
        axis.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.7))
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.2)
    return made


def error_near(by_t: Mapping[str, float], t: float) -> float:
    """The error at the measured time that is nearest to t."""
    return by_t[min(by_t, key=lambda each: abs(int(each) - t))]


def target_panels(found: Mapping[str, Any]) -> list[Panel]:
    """Panels of the x_0 error by t relative to the first cell: all targets at constant weight, x_0 at all weights."""
    cells = [name for name in found if BY_T in next(iter(found[name].values()))["numbers"]]
    curves = {name: [error_curve(seed["numbers"][BY_T]) for seed in found[name].values()] for name in cells}
    times = next(iter(curves.values()))[0][0]
    baseline = np.mean([values for _, values in next(iter(curves.values()))], axis=0)

    def panel(title: str, names: Sequence[str]) -> Panel:
        ratios = {name: np.array([values for _, values in curves[name]]) / baseline for name in names}
        se = {n: r.std(0, ddof=1) / len(r) ** 0.5 for n, r in ratios.items() if len(r) > 1}
        ys = {n: r.mean(0) for n, r in ratios.items()}
        return Panel(times, ys, "t", f"RMSE of x₀ over that of {cells[0]}", title, se, xscale="log", yscale="log")

    constant = [name for name in cells if name.endswith(", constant")]
    weighted = [cells[0], *(name for name in cells if name.startswith("x₀"))]
    return [panel("under a constant weight", constant), panel("x₀ under every weight", weighted)]


def error_curve(by_t: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps in ascending order, and the errors at them."""
    times = sorted(map(int, by_t))
    return np.array(times), np.array([by_t[str(t)] for t in times])


def one_step_table(name: str) -> list[str]:
    """Markdown tables by start t: one-step prediction, then chains by number of function evaluations."""
    found = read_rows(RESULTS / f"{name}.json")
    if not found:
        return []
    samplers = list(dict.fromkeys(key.partition(", ")[2] for key in found if key.startswith("t=")))
    heads = [name.replace("one jump", "one step").replace("calls", "NFE") for name in samplers]
    lines = []
    for number in (DISTANCE, ERROR):
        lines += ["", f"| {number} from | {' | '.join(heads)} |", f"|---|{'---|' * len(samplers)}"]
        for start in dict.fromkeys(key.partition(", ")[0] for key in found if key.startswith("t=")):
            values = [seed_mean(found, f"{start}, {way}", number) for way in samplers]
            formatted = ["-" if value is None else protocol.format_value(*value) for value in values]
            lines.append(f"| {start} | {' | '.join(formatted)} |")
    own = seed_mean(found, "held-out images", DISTANCE)
    return [*lines, "", f"The held-out images themselves: {DISTANCE} {protocol.format_value(*own)}." if own else "", ""]


def seed_mean(found: Mapping[str, Any], row: str, number: str) -> tuple[float, float] | None:
    """Mean of a number over seeds with its standard error; None if the row is missing."""
    return mean_and_error([seed["numbers"][number] for seed in found[row].values()]) if row in found else None


def nfe_panels(found: Mapping[str, Any]) -> list[Panel]:
    """Panels of Fréchet distance and error by NFE of the chains, a line for each start t."""
    starts = list(dict.fromkeys(key.partition(", ")[0] for key in found if key.startswith("t=")))[
        : len(START_FRACTIONS)
    ]
    row = []
    for kind, number in (("ddim", DISTANCE), ("ancestral", DISTANCE), ("ancestral", ERROR)):
        counts = sorted({int(key.split()[-2]) for key in found if f", {kind}, " in key})
        ys, se = {}, {}
        for start in starts:
            rows = [f"{start}, one jump", *(f"{start}, {kind}, {n} calls" for n in counts)]
            values = [seed_mean(found, row, number) or (float("nan"), float("nan")) for row in rows]
            ys[f"from {start}"], se[f"from {start}"] = zip(*values, strict=True)
        known = {name: e for name, e in se.items() if np.isfinite(e).any()}
        yscale = "log" if number == DISTANCE else "linear"
        row.append(
            Panel([1, *counts], ys, "function evaluations (NFE)", number, kind, known, xscale="log", yscale=yscale)
        )
    return row


def one_step_figure(arrays: Mapping[str, np.ndarray]) -> Any:
    """Matplotlib figure by start t: images, x_t, one-step predictions, and results of chains with few to many NFE."""
    from matplotlib.figure import Figure

    starts = [name for name in arrays if name.startswith("t=") and "," not in name]
    figure = Figure(figsize=(2.6 * len(starts), 3.4), dpi=150, layout="constrained")
    for axes, start in zip(figure.subplots(1, len(starts)), starts, strict=True):
        samplers = [name for name in arrays if name.startswith(f"{start}, ")]
        chains = {kind: [way for way in samplers if f" {kind}, " in way] for kind in ("ancestral", "ddim")}
        picked = [f"{start}, one jump", *dict.fromkeys(c[i] for c in chains.values() for i in (0, len(c) // 2, -1))]
        rows = {"image": arrays["held-out images"], "x_t": arrays[start]}
        rows |= {name.partition(", ")[2].replace(" calls", "").replace("jump", "step"): arrays[name] for name in picked}
        cells = np.concatenate(list(rows.values()))
        axes.imshow(
            data.make_grid(cells, int(arrays["levels"]), columns=len(arrays[start])).squeeze(),
            cmap="grey",
            interpolation="nearest",
        )
        side = (cells.shape[1] + 1) * np.arange(len(rows)) + cells.shape[1] / 2
        axes.set_yticks(side, list(rows), fontsize="xx-small")
        axes.set_xticks([])
        axes.set_title(start, fontsize="medium")
    return figure


def manifold_table(found: Mapping[str, Any]) -> list[str]:
    """Markdown table of the distances of samples to the curve, by target and D."""
    if not found:
        return []
    dimensions = [D for D in DIMENSIONS if f"{NOISE}, D={D}" in found]
    lines = [f"| | | {' | '.join(f'D = {D}' for D in dimensions)} |", f"|---|---|{'---|' * len(dimensions)}"]
    for number in (IN_PLANE, OFF_PLANE, COVERAGE):
        for target in (target for target in (*TARGETS, NOISE) if f"{target}, D={dimensions[0]}" in found):
            values = [seed_mean(found, f"{target}, D={D}", number) for D in dimensions]
            formatted = ["-" if value is None else protocol.format_value(*value) for value in values]
            lines.append(f"| {number} | {target} | {' | '.join(formatted)} |")
    return lines


def manifold_figure(found: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> Any:
    """Matplotlib figure: samples in the plane by target and D beside the curve, and their distances to it by D."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(13, 4.8), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    curve, edge = np.asarray(spiral(np.linspace(0, 1, 500))), 2.6
    for row, target, color in zip(left.subplots(3, len(DIMENSIONS)), TARGETS, ("C0", "C1", "C2"), strict=True):
        for axes, D in zip(row, DIMENSIONS, strict=True):
            x, y = samples[f"{target}, D={D}"].astype(np.float32).clip(-edge, edge).T
            axes.plot(*curve.T, color="0.8", linewidth=4)
            axes.scatter(x, y, s=3, color=color, linewidth=0, zorder=3)
            off_plane = seed_mean(found, f"{target}, D={D}", OFF_PLANE) or (float("nan"),)
            axes.set_xlabel(f"{off_plane[0]:.3g} off the plane", fontsize="small")
            axes.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[], aspect="equal")
        row[0].set_ylabel(f"{target} predicted")
        if target == next(iter(TARGETS)):
            for axes, D in zip(row, DIMENSIONS, strict=True):
                axes.set_title(f"D = {D}", fontsize="medium")
    left.suptitle(
        "Samples projected to the plane (points beyond the frame on its edge); grey: the data", fontsize="medium"
    )
    means = {name: [seed_mean(found, f"{name}, D={D}", TOTAL) for D in DIMENSIONS] for name in (*TARGETS, NOISE)}
    ys, se = ({name: [each[i] for each in values if each] for name, values in means.items()} for i in (0, 1))
    title = "Mean distance to the curve"
    panel = Panel(DIMENSIONS, ys, "dimensions D", "distance in D dimensions", title, se, xscale="log", yscale="log")
    axes = right.subplots()
    plots.draw_panel(axes, panel)
    axes.set_xticks(DIMENSIONS, [str(D) for D in DIMENSIONS])
    axes.set_xticks([], minor=True)
    return figure


if __name__ == "__main__":
    main()
