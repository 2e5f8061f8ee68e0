"""The command `ddpm-jax evaluate`: its list of commands, their flags, and refused requests."""

import pytest
import tyro

from ddpm_jax.programs import cli
from ddpm_jax.programs.evaluate import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_its_flags(command, capsys):
    """No two flags of a command, its own and the shared ones, may have one name."""
    with pytest.raises(SystemExit, match="0"):
        cli.call(["evaluate", "run", command, "--help"])
    assert "--sampler" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), ([], 2), (["run"], 2), (["run", "nothing"], 2)])
def test_a_call_without_a_command_lists_them(arguments, status, capsys):
    assert cli.call(["evaluate", *arguments]) == status
    printed = capsys.readouterr()
    for name in COMMANDS:
        assert f"  {name}" in printed.out + printed.err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli.call(["evaluate", str(tmp_path), "likelihood"]) == 2
    assert "holds no checkpoints: it is not the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_every_command_can_be_parsed(command):
    options = COMMANDS[command][0]
    assert tyro.cli(options, args=["--tile", "3"]).common.sampling.tile == 3
