"""The command `ddpm-jax convert`: weights to runs, and runs to other formats.

    ddpm-jax convert from diffusers FOLDER --workdir RUN
    ddpm-jax convert from openai FILE.pt --workdir RUN
    ddpm-jax convert from original FILE --config configs/cifar10.py --shape 32 32 3 --workdir RUN
    ddpm-jax convert from plain FOLDER --workdir RUN
    ddpm-jax convert to diffusers RUN OUT
    ddpm-jax convert to plain RUN OUT

`from diffusers --help` lists a command's flags.  Files are local; no code in them is executed, and nothing is written
if a check fails.
"""

import sys

from ddpm_jax import process
from ddpm_jax.config import flags
from ddpm_jax.convert import options

COMMANDS = {
    ("from", "diffusers"): options.FromDiffusers,
    ("from", "openai"): options.FromOpenAI,
    ("from", "original"): options.FromOriginal,
    ("from", "plain"): options.FromPlain,
    ("to", "diffusers"): options.ToDiffusers,
    ("to", "plain"): options.ToPlain,
}
"""The options of each command, which the function FROM_FORMAT or TO_FORMAT of `convert.commands` runs."""


def main(argv: list[str]) -> int:
    """Runs one command; exit status 0, 2 if the request or a file is refused, 6 if a file cannot be written."""
    command = (argv[0], argv[1]) if len(argv) > 1 else ("", "")
    if command not in COMMANDS:
        is_help = bool({"-h", "--help"} & set(argv))
        print(usage(), file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    args = flags.parse(COMMANDS[command], argv[2:], prog=f"ddpm-jax convert {command[0]} {command[1]}")

    from ddpm_jax.convert import commands

    process.start_jax()
    getattr(commands, "_".join(command))(args)
    return 0


def usage() -> str:
    """The usage: each command with its purpose."""
    rows = [f"  {' '.join(which):16}{(of.__doc__ or '').splitlines()[0]}" for which, of in COMMANDS.items()]
    return "\n".join(["usage: ddpm-jax convert from|to FORMAT ...     (from FORMAT --help: its flags)", "", *rows])
