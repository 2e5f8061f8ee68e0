"""The command line: `ddpm-jax COMMAND ...`, or `python -m ddpm_jax COMMAND ...`.

Exit statuses: 0 done, 2 a wrong request, 5 another process was lost, 6 a file cannot be written, 7 too little memory,
130 stopped by Ctrl-C; others are a command's own.
"""

import importlib
import sys
from typing import NoReturn

import ddpm_jax
from ddpm_jax import process

COMMANDS = {
    "train": "trains a model of a config, or continues a run",
    "plot": "draws the curves of a run's metrics.jsonl",
    "sample": "draws images from a run",
    "evaluate": "measures likelihood and sample quality; draws the figures of the paper",
    "convert": "converts weights from diffusers, OpenAI's checkpoints and the original, and to diffusers",
    "preflight": "reports memory, cost and speed of a config before a long run",
    "prepare": "writes MNIST or CIFAR-10 to .npz, other images (a folder, arrays) to a TFDS data set",
    "replay": "repeats a non-finite training step and names the first layer that is not finite",
    "conformance": "checks the samplers against known solutions",
}


def call(argv: list[str]) -> int:
    """Runs a command line and returns its exit status.

    An error of a request, a file or memory is printed as one line on standard error; others pass.  One of several
    processes then ends at once, see `process.exit_process`.
    """
    name = argv[0] if argv else ""
    if name == "--version":
        print(f"ddpm_jax {ddpm_jax.__version__}")
        return 0
    if name not in COMMANDS:
        is_help = name in ("-h", "--help")
        print(usage(), file=sys.stdout if is_help else sys.stderr)
        if name and not is_help:
            print(f"\nddpm-jax: there is no command {name!r}", file=sys.stderr)
        return 0 if is_help else 2
    command = importlib.import_module(f"ddpm_jax.programs.{name}")
    try:
        return command.main(argv[1:])
    except (ValueError, FileNotFoundError, IsADirectoryError, ModuleNotFoundError) as error:
        failure, status = error, 2
    except OSError as error:  # a full disk, a folder that is not ours to write
        failure, status = error, process.EXIT_UNWRITABLE
    except MemoryError as error:
        failure, status = error, process.EXIT_OUT_OF_MEMORY
    print(f"{name}: {failure}", file=sys.stderr)
    return process.exit_process(status)


def usage() -> str:
    """The usage: each command with its purpose."""
    rows = [f"  {name:13}{title}" for name, title in COMMANDS.items()]
    return "\n".join(["usage: ddpm-jax COMMAND ...     (COMMAND --help: its options)", "", *rows])


def main(*command: str) -> NoReturn:
    """The entry point of the console script; `main("train")` is that of train.py."""
    process.run_main(lambda argv: call([*command, *argv]))
