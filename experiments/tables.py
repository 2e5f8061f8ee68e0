"""Tables of docs/experiments.md: their runs and measurements.

A run is `train.py CONFIG` with a table's flags, a cell's flags and a seed; all cells of a table have the same steps and
images.  Measurements are commands of `ddpm-jax evaluate`, the same for every cell.
"""

from typing import NamedTuple

from benchmarks.condition_accuracy import UNSEEN_TEMPLATES, digit_texts


class Cell(NamedTuple):
    """A row of a table.

    Attributes:
        flags: its own flags; rows of several tables with the same flags share one run.
        T: timesteps of its schedule, the maximum of sampling steps in its measurements.
        config: in place of the table's, if it is not "".
        texts: of its samples in turn, those of sample i for digit i mod 10; without texts they are unconditional.
    """

    name: str
    flags: tuple[str, ...] = ()
    T: int = 1000
    config: str = ""
    texts: tuple[str, ...] = ()


class Table(NamedTuple):
    """Runs to be compared.

    Attributes:
        config: of all runs.
        flags: of all runs.
        cells: the rows; the first is the reference of the others.
        measures: name -> a command of `ddpm-jax evaluate` with its flags.
        seeds: each cell is run once for each.
        timed: the rows should take equally long, so their seconds are shown.
        minutes: of training, of each run, if they are the same for all.
    """

    config: str
    flags: tuple[str, ...]
    cells: tuple[Cell, ...]
    measures: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...] = (0, 1, 2)
    timed: bool = False
    minutes: float = 0.0


class Network(NamedTuple):
    """A network of the nine cells.

    Attributes:
        flags: of all its cells.
        steps_a_minute: training steps in a minute of one core, see `experiments.nine_cells`.
    """

    name: str
    config: str
    flags: tuple[str, ...]
    steps_a_minute: float


_WEIGHTS = {"none": "constant", "truncated_snr": "max(SNR, 1)", "min_snr": "min(SNR, 5)", "snr": "SNR"}


def _targets(*weights: str) -> tuple[Cell, ...]:
    """Prediction targets, under each weight of the squared error."""
    named = {"eps": "ε", "x0": "x₀", "v": "v"}
    return tuple(
        Cell(
            f"{named[predicts]}, {_WEIGHTS[weight]}",
            (*(("--loss.predicts", predicts) if predicts != "eps" else ()),
             *(("--loss.weight", weight) if weight != "none" else ())),
        )
        for weight in weights
        for predicts in named
        if (predicts, weight) != ("eps", "snr")  # which is ("eps", "none")
    )  # fmt: skip


def _objectives() -> tuple[Cell, ...]:
    """The paper's table 2, and the hybrid loss of improved-DDPM."""
    variational, learned = ("--loss.kind", "variational"), ("--loss.learned-variance",)
    mean = ("--loss.predicts", "mean")
    return (
        Cell("ε, L_simple, fixed variance"),
        Cell("ε, L, fixed variance", variational),
        Cell("ε, L, learned variance", (*variational, *learned)),
        Cell("ε, L_hybrid, learned variance", ("--loss.kind", "hybrid", *learned)),
        Cell("mean, squared error, fixed variance", mean),
        Cell("mean, L, fixed variance", (*mean, *variational)),
        Cell("mean, L, learned variance", (*mean, *variational, *learned)),
    )


def _schedules() -> tuple[Cell, ...]:
    """Schedules, and chains of other lengths, whose betas are scaled so that as little is left at the end."""

    def linear(T: int) -> Cell:
        betas = ("--schedule.beta-1", f"{0.1 / T:g}", "--schedule.beta-T", f"{20 / T:g}")
        return Cell(f"linear, T = {T}", ("--schedule.T", str(T), *betas, "--sampling.steps", str(T)), T)

    return (
        Cell("linear, T = 1000"), Cell("cosine, T = 1000", ("--schedule.kind", "cosine")),
        Cell("quad, T = 1000", _QUAD), linear(50), linear(250), linear(4000),
    )  # fmt: skip


def _training() -> tuple[Cell, ...]:
    return (
        Cell("as configured"), Cell("times independent", ("--loss.no-stratified",)),
        Cell("average without warm-up", ("--optim.no-ema-warmup",)),
        Cell("rate kept", ("--optim.decay", "0")),
        *(Cell(f"dropout {rate}", ("--net.dropout", rate)) for rate in ("0.1", "0.2", "0.3")),
    )  # fmt: skip


def _budget_cell(name: str, steps: int, *flags: str, falling: bool = True) -> Cell:
    """Cell with a number of steps and a learning rate that decays to 0 or is constant."""
    decay = ("--optim.decay", str(steps)) if falling else ()
    return Cell(name, ("--steps", str(steps), "--save-every", str(steps), *decay, *flags))


def _rate(value: str) -> tuple[str, str]:
    return "--optim.learning-rate", value


_QUAD = ("--schedule.kind", "quad")
_HYBRID = ("--loss.kind", "hybrid", "--loss.learned-variance")


def _recipes() -> tuple[Cell, ...]:
    """Settings for a budget of minutes: each has the steps that take as long as the first one's."""
    cell, rate, best = _budget_cell, _rate, _rate("4e-3")
    helped = ("--batch", "64", "--loss.stratified", "--net.dropout", "0")
    narrow, shallow = ("--net.channels", "24"), ("--net.num-res-blocks", "1")

    def quad(name: str, *flags: str) -> Cell:
        flags = (*best, *helped, *narrow, *shallow, *_QUAD, *flags)
        return cell(f"all that helped, 24 channels, one block, quad{name}", 6000, *flags)

    def beta_1_flag(beta_1: str) -> tuple[str, str]:
        return "--schedule.beta-1", beta_1

    return (
        cell("rate 2e-3, kept", 1300, falling=False), cell("rate 2e-3, falling", 1300),
        cell("rate 1e-3, falling", 1300, *rate("1e-3")), cell("rate 4e-3, falling", 1300, *best),
        cell("rate 8e-3, falling", 1300, *rate("8e-3")),
        cell("rate 2e-3, falling, average over 100 steps", 1300, "--optim.ema-decay", "0.99"),
        cell("rate 2e-3, falling, no dropout", 1300, "--net.dropout", "0"),
        cell("rate 4e-3, falling, average over 100 steps", 1300, *best, "--optim.ema-decay", "0.99"),
        cell("rate 4e-3, falling, no dropout", 1300, *best, "--net.dropout", "0"),
        cell("rate 4e-3, falling, times stratified", 1300, *best, "--loss.stratified"),
        cell("rate 4e-3, falling, batch 64", 2500, *best, "--batch", "64"),
        cell("rate 4e-3, falling, 24 channels", 1900, *best, *narrow),
        cell("rate 4e-3, falling, 48 channels", 700, *best, "--net.channels", "48"),
        cell("all that helped: 4e-3, falling, batch 64, stratified, no dropout", 2900, *best, *helped),
        cell("all that helped, 24 channels", 3900, *best, *helped, *narrow),
        cell("all that helped, 16 channels", 5400, *best, *helped, "--net.channels", "16"),
        cell("all that helped, 24 channels, one block", 6000, *best, *helped, *narrow, *shallow),
        cell("all that helped, 24 channels, one block, rate 2e-3", 6000, *rate("2e-3"), *helped, *narrow, *shallow),
        quad(""), quad(", hybrid", *_HYBRID),
        *(quad(f" from {beta_1}", *beta_1_flag(beta_1)) for beta_1 in ("3e-4", "1e-3", "3e-3")),
        *(quad(f" from {beta_1}, hybrid", *beta_1_flag(beta_1), *_HYBRID) for beta_1 in ("3e-4", "1e-3")),
        cell("all that helped, 16 channels, one block", 9000, *best, *helped, "--net.channels", "16", *shallow),
        cell("all that helped, 32 channels, one block", 4400, *best, *helped, *shallow),
        cell("all that helped, batch 32", 5000, *best, *helped[2:], "--batch", "32"),
    )  # fmt: skip


def _recipes_mnist() -> tuple[Cell, ...]:
    """The same for a quarter of an hour of one core, what helped on digits first; then for three quarters."""
    helped = ("--optim.warmup", "100", "--optim.ema-decay", "0.999", "--loss.stratified", "--net.dropout", "0")

    def cell(steps: int, channels: int, depth: int, rate: str, batch: int = 64, *flags: str, more: str = "") -> Cell:
        network = ("--net.channels", str(channels), "--net.num-res-blocks", str(depth), "--batch", str(batch))
        name = f"{channels} channels, {depth} block{'s' * (depth > 1)}, batch {batch}, rate {rate}{more}"
        return _budget_cell(name, steps, *network, *_rate(rate), *helped, *flags)

    return (
        _budget_cell("as configured: 32 channels, 2 blocks, batch 64, rate 5e-4, kept", 420, falling=False),
        cell(720, 32, 1, "4e-3"), cell(1920, 16, 1, "4e-3"), cell(1200, 16, 2, "4e-3"),
        cell(3840, 16, 1, "4e-3", 32), cell(3840, 16, 1, "2e-3", 32),
        cell(3840, 16, 1, "4e-3", 32, *_QUAD, more=", quad"),
        cell(3840, 16, 1, "4e-3", 32, *_QUAD, *_HYBRID, more=", quad, hybrid"),
        cell(11_520, 16, 1, "4e-3", 32, more=", longer"), cell(4320, 32, 1, "4e-3", 32, more=", longer"),
    )  # fmt: skip


def _patches(size: int) -> tuple[str, str]:
    return "--net.transformer.patch-size", str(size)


_BOTTLENECK = "--net.transformer.bottleneck", "4"

NETWORKS = {
    "cells-digits": (
        Network("U-Net", "configs/digits.py", (), 870),
        Network("patch 1", "configs/digits.py:patch", _patches(1), 160),
        Network("patch 2", "configs/digits.py:patch", _patches(2), 920),
        Network("patch 4", "configs/digits.py:patch", _patches(4), 3190),
        Network("patch 4 with bottleneck 4", "configs/digits.py:patch", (*_patches(4), *_BOTTLENECK), 3440),
    ),
    "cells-mnist": (
        Network("U-Net", "configs/mnist.py", (), 224),
        Network("patch 4", "configs/digits.py:patch", _patches(4), 499),
        Network("patch 7", "configs/digits.py:patch", _patches(7), 1920),
    ),
}
"""Networks of the nine cells.  "patch 4 with bottleneck 4" embeds patches of 16 numbers through 4 channels."""

QUANTITIES = {"eps": "ε", "x0": "x₀", "v": "v"}


def nine_cells(name: str, minutes: float) -> Table:
    """Table of what a network predicts, and whose squared error the loss is, for equal minutes of training."""

    def cell(network: Network, predicts: str, space: str) -> Cell:
        steps = 10 * max(1, round(minutes * network.steps_a_minute / 10))
        in_space = () if predicts == space else ("--loss.space", space)
        title = f"{network.name}, predicts {QUANTITIES[predicts]}, error of {QUANTITIES[space]}"
        flags = (*network.flags, "--loss.predicts", predicts, *in_space)
        return _budget_cell(title, steps, *flags)._replace(config=network.config)

    cells = tuple(cell(n, p, s) for n in NETWORKS[name] for p in QUANTITIES for s in QUANTITIES)
    on_digits = name == "cells-digits"
    flags, measures = (_PLAIN, _measures(297, 1000, steps=50)) if on_digits else (_PLAIN + _IMAGES_OF_MNIST, _ON_MNIST)
    return Table(NETWORKS[name][0].config, flags, cells, measures, timed=True, minutes=minutes)


def _measures(images: int, samples: int, steps: int = 250) -> dict[str, tuple[str, ...]]:
    return {
        "bound": ("likelihood", "--estimate", "16", "--num", str(images)),
        "errors": ("likelihood", "--steps", "50", "--num", str(images)),
        "samples": ("samples", "--num", str(samples), "--steps", str(steps), "--variance-mix", "0"),
    }


def _steps(steps: int, *flags: str) -> tuple[str, ...]:
    """Flags for a number of steps without previews or checkpoints before the end."""
    return "--steps", str(steps), "--sample-every", "0", "--save-every", str(steps), *flags


_PLAIN = (
    "--schedule.kind", "linear", "--schedule.beta-1", "1e-4", "--loss.kind", "simple", "--loss.no-learned-variance",
    "--sample-every", "0", "--sampling.steps", "50",
)  # fmt: skip
"""The paper's schedule and variance for configs with others."""

_IMAGES_OF_MNIST = "--data.source", "npz:data/mnist.npz", "--batch", "32", "--evaluation.images", "256"

_SMALL = (
    "--net.channels", "16", "--net.num-res-blocks", "1", "--net.dropout", "0", "--optim.learning-rate", "2e-3",
    "--optim.warmup", "100", "--optim.decay", "1000", "--optim.ema-decay", "0.999", "--sampling.steps", "50",
    *_steps(1000),
)  # fmt: skip
"""What two cores can train on MNIST 18 times."""


_ON_DIGITS = _measures(297, 1000)
_ON_MNIST = {**_measures(500, 1000, steps=50), "errors": ("likelihood", "--steps", "50", "--num", "100")}


def _digits(cells: tuple[Cell, ...]) -> Table:
    """A third of the config's steps, with the paper's schedule."""
    return Table("configs/digits.py:linear", _steps(2000, "--optim.decay", "2000"), cells, _ON_DIGITS)


TABLES = {
    "targets-digits": Table("configs/digits.py:wide", _steps(1000), _targets(*_WEIGHTS), _ON_DIGITS),
    "objectives-digits": _digits(_objectives()),
    "schedules-digits": _digits(_schedules()),
    "training-digits": _digits(_training()),
    "recipe-digits": Table("configs/digits.py:wide", ("--sample-every", "0"), _recipes(), _ON_DIGITS, timed=True),
    "text-digits": Table(
        "configs/digits.py", ("--sample-every", "0", "--save-every", "6000"),
        (Cell("without text"), Cell("with text", config="configs/digits.py:text", texts=digit_texts(UNSEEN_TEMPLATES))),
        _ON_DIGITS, timed=True,
    ),
    "recipe-mnist": Table(
        "configs/mnist.py:wide", ("--sample-every", "0", "--sampling.steps", "50"), _recipes_mnist(), _ON_MNIST,
        timed=True,
    ),
    "cells-digits": nine_cells("cells-digits", minutes=3),
    "cells-mnist": nine_cells("cells-mnist", minutes=5),
    "targets-mnist": Table("configs/mnist.py:wide", _SMALL, _targets("none", "min_snr"), _ON_MNIST),
}  # fmt: skip
