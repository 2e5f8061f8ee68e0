"""Weights from elsewhere as a run, and a run's weights elsewhere.

    python -m ddpm_jax.convert from diffusers FOLDER --workdir RUN
    python -m ddpm_jax.convert from openai FILE.pt --workdir RUN
    python -m ddpm_jax.convert from original FILE --config configs/cifar10.py --shape 32 32 3 --workdir RUN
    python -m ddpm_jax.convert from plain FOLDER --workdir RUN
    python -m ddpm_jax.convert to diffusers RUN OUT
    python -m ddpm_jax.convert to plain RUN OUT

`from diffusers --help` lists a command's flags.  Files are local; nothing in them is executed, and nothing is written
if anything about them is refused.
"""

import sys
from collections.abc import Callable
from typing import Any

from ddpm_jax import process
from ddpm_jax.config import flags
from ddpm_jax.convert import commands

COMMANDS: dict[tuple[str, str], tuple[type, Callable[[Any], None]]] = {
    ("from", "diffusers"): (commands.FromDiffusers, commands.from_diffusers),
    ("from", "openai"): (commands.FromOpenAI, commands.from_openai),
    ("from", "original"): (commands.FromOriginal, commands.from_original),
    ("from", "plain"): (commands.FromPlain, commands.from_plain),
    ("to", "diffusers"): (commands.ToDiffusers, commands.to_diffusers),
    ("to", "plain"): (commands.ToPlain, commands.to_plain),
}


def main(argv: list[str]) -> int:
    """Runs one command; exit status 0, or 2 for what is refused, or 6 for what cannot be written."""
    which = (argv[0], argv[1]) if len(argv) > 1 else ("", "")
    if which not in COMMANDS:
        asked = bool({"-h", "--help"} & set(argv))
        print(usage(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    options, run = COMMANDS[which]
    try:
        chosen = flags.parse(options, argv[2:], prog=f"python -m ddpm_jax.convert {which[0]} {which[1]}")
        process.start()
        run(chosen)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that is not ours to write
        print(f"convert: {error}", file=sys.stderr)
        return process.UNWRITABLE
    return 0


def usage() -> str:
    """How to call, and what each command does."""
    rows = [
        f"  {' '.join(which):16}{(options.__doc__ or '').splitlines()[0]}" for which, (options, _) in COMMANDS.items()
    ]
    return "\n".join(
        ["usage: python -m ddpm_jax.convert from|to FORMAT ...     (from FORMAT --help: its flags)", "", *rows]
    )


if __name__ == "__main__":
    process.run(main)
