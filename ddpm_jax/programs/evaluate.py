"""The command `ddpm-jax evaluate`: evaluates a run.

    ddpm-jax evaluate RUN likelihood [--split test --variance-mix 0 ...]

The first argument is the run's folder, the second a command; `RUN COMMAND --help` lists its flags.
"""

import importlib
import sys

from ddpm_jax import process
from ddpm_jax.config import flags
from ddpm_jax.evaluate import options

COMMANDS = {
    "likelihood": (options.LikelihoodOptions, "likelihood"),
    "samples": (options.SamplesOptions, "samples"),
    "table": (options.TableOptions, "table"),
    "nfe": (options.NfeOptions, "nfe"),
    "ema": (options.EmaOptions, "ema"),
    "progressive": (options.ProgressiveOptions, "figures.progressive"),
    "predictions": (options.PredictionsOptions, "figures.predictions"),
    "stochastic": (options.StochasticOptions, "figures.stochastic"),
    "interpolation": (options.InterpolationOptions, "figures.interpolation"),
    "rate_distortion": (options.RateDistortionOptions, "figures.rate_distortion"),
    "neighbours": (options.NeighboursOptions, "figures.neighbours"),
    "report": (options.ReportOptions, "model_card"),
}
"""The options of each command, and the module of `evaluate` whose `run` implements it."""

MULTI_PROCESS = ("likelihood", "samples")
"""The commands that several processes can run together: those that take long.  The others read their results."""


def main(argv: list[str]) -> int:
    """Runs `RUN COMMAND [flags]`; exit status 0, 2 if RUN or COMMAND is missing or unknown, 4 if interrupted."""
    if len(argv) < 2 or argv[0].startswith("-") or argv[1] not in COMMANDS:
        is_help = bool({"-h", "--help"} & set(argv))
        print(usage(), file=sys.stdout if is_help else sys.stderr)
        if len(argv) > 1 and argv[0] in COMMANDS and not is_help:
            print(f"\nevaluate: the run comes first: {' '.join([argv[1], argv[0], *argv[2:]])}", file=sys.stderr)
        elif len(argv) > 1 and not is_help:
            print(f"\nevaluate: there is no command {argv[1]!r}", file=sys.stderr)
        return 0 if is_help else 2
    flags.check_words(argv)
    kind, module = COMMANDS[argv[1]]
    parsed = flags.parse(kind, argv[2:], prog=f"ddpm-jax evaluate RUN {argv[1]}")
    process.initialize(devices=parsed.common.devices, distributed=parsed.common.hosts)

    import jax

    from ddpm_jax import keys
    from ddpm_jax.evaluate.context import Interrupted, open_context

    command = importlib.import_module(f"ddpm_jax.evaluate.{module}")
    if jax.process_count() > 1 and argv[1] not in MULTI_PROCESS:
        raise ValueError(f"{argv[1]} runs in one process; {' and '.join(MULTI_PROCESS)} run in several")
    if hasattr(parsed, "seed"):
        keys.check_integer("--seed", parsed.seed)
    with process.abort_together("evaluate"):
        context = open_context(argv[0], parsed.common)
        with (
            process.explain_write_errors(context.out),
            process.explain_oom("a tile of images", lambda: process.sampling_oom_hints(context.model.tile)),
        ):
            try:
                command.run(context, parsed)
            except Interrupted:
                return 4
    return 0


def usage() -> str:
    """The usage: each command with its purpose."""
    rows = [f"  {name:16}{(of.__doc__ or '').splitlines()[0]}" for name, (of, _) in COMMANDS.items()]
    return "\n".join(["usage: ddpm-jax evaluate RUN COMMAND [flags]     (RUN COMMAND --help: its flags)", "", *rows])
