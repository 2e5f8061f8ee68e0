"""Evaluates a run.

    python -m ddpm_jax.evaluate RUN likelihood [--split test --mix 0 ...]

The first argument is the run's folder, the second what to do; `RUN COMMAND --help` lists a command's flags.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax

from ddpm_jax import keys, process, runs
from ddpm_jax.config import flags
from ddpm_jax.evaluate import (
    calls,
    interpolation,
    likelihood,
    neighbours,
    predictions,
    progressive,
    rate_distortion,
    report,
    samples,
    stochastic,
    table,
)
from ddpm_jax.evaluate.subject import subject

COMMANDS: dict[str, tuple[type, Callable[[Any, Any], int]]] = {
    "likelihood": (likelihood.Likelihood, likelihood.run),
    "samples": (samples.Samples, samples.run),
    "table": (table.Table, table.run),
    "calls": (calls.Calls, calls.run),
    "progressive": (progressive.Progressive, progressive.run),
    "predictions": (predictions.Predictions, predictions.run),
    "stochastic": (stochastic.Stochastic, stochastic.run),
    "interpolation": (interpolation.Interpolation, interpolation.run),
    "rate_distortion": (rate_distortion.RateDistortion, rate_distortion.run),
    "neighbours": (neighbours.Neighbours, neighbours.run),
    "report": (report.Report, report.run),
}


ON_SEVERAL = ("likelihood", "samples")
"""The commands that several processes can do together: those that take long.  The others read what these have left."""


def main(argv: list[str]) -> int:
    """Runs one command; exit status 0, or 2 for a wrong request, or 4 if it was interrupted and can go on."""
    if len(argv) < 2 or argv[0].startswith("-") or argv[1] not in COMMANDS:
        asked = bool({"-h", "--help"} & set(argv))
        print(usage(), file=sys.stdout if asked else sys.stderr)
        if len(argv) > 1 and argv[0] in COMMANDS and not asked:
            print(f"\nevaluate: the run comes first: {' '.join([argv[1], argv[0], *argv[2:]])}", file=sys.stderr)
        elif len(argv) > 1 and not asked:
            print(f"\nevaluate: there is no command {argv[1]!r}", file=sys.stderr)
        return 0 if asked else 2
    options, run = COMMANDS[argv[1]]
    try:
        flags.checked(argv)
        chosen = flags.parse(options, argv[2:], prog=f"python -m ddpm_jax.evaluate RUN {argv[1]}")
        process.prepare(devices=chosen.which.devices, hosts=chosen.which.hosts)
        if jax.process_count() > 1 and argv[1] not in ON_SEVERAL:
            raise ValueError(f"{argv[1]} runs in one process; {' and '.join(ON_SEVERAL)} run in several")
        if hasattr(chosen, "seed"):
            keys.number("--seed", chosen.seed)
        with process.as_one("evaluate"):
            evaluated = subject(argv[0], chosen.which)
            with (
                process.writing(evaluated.out),
                runs.fitting("a tile of images", lambda: runs.lighter_samples(evaluated.model.tile)),
            ):
                return run(evaluated, chosen)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return process.leave(2)
    except OSError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return process.leave(process.UNWRITABLE)
    except MemoryError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return process.leave(process.TOO_LARGE)


def usage() -> str:
    """How to call, and what each command does."""
    rows = [f"  {name:16}{(options.__doc__ or '').splitlines()[0]}" for name, (options, _) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m ddpm_jax.evaluate RUN COMMAND [flags]     (RUN COMMAND --help: its flags)", "", *rows]
    )


if __name__ == "__main__":
    process.run(main)
