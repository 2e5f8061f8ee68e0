"""The README is a program: its notebook lines run, and the commands and files it names exist."""

import pathlib
import re
import shlex

import numpy as np
import pytest
import tyro

from ddpm_jax import config
from ddpm_jax.programs import cli, sample
from ddpm_jax.programs.evaluate import COMMANDS

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_notebook_lines_run_and_learn_something():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert np.isfinite(names["x"]).all()
    # an untrained network of v has a loss of about 1; forty steps bring it well below
    assert names["metrics"]["loss"] < 0.6
    assert names["x"].shape == (16, 8, 8, 1)


def test_the_files_it_names_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path


def test_its_commands_are_the_makefile_s_and_the_programs_own():
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"`make ([\w-]+)", README):
        assert re.search(rf"^{command}:", makefile, re.M), command
    for command in re.findall(r"ddpm-jax ([a-z]+)", README):
        assert command in cli.COMMANDS, command


def test_its_configs_can_be_loaded():
    names = re.findall(r"ddpm-jax train ([a-z]\w*(?::\w+)?) ", README)
    assert len(names) >= 4
    for name in names:
        config.load(name)


def test_its_samples_are_asked_for_by_the_flags_that_there_are():
    lines = re.findall(r"^ddpm-jax sample ([^#\n]*)", README, re.M)
    assert len(lines) >= 8
    for line in lines:
        tyro.cli(sample.Arguments, args=shlex.split(line))


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md"])
def test_the_evaluations_it_names_have_these_flags(page):
    """Each `ddpm-jax evaluate RUN COMMAND --flags` line is one that the program would take."""
    lines = re.findall(r"^ddpm-jax evaluate (?!RUN)(\S+) (\w+)([^\n#]*)", (ROOT / page).read_text(), re.M)
    assert lines
    for _, command, flags in lines:
        tyro.cli(COMMANDS[command][0], args=flags.split())


def test_every_command_of_the_evaluation_is_in_its_page():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    for command in COMMANDS:
        assert f"`{command}`" in page, command


def test_the_pictures_of_the_evaluation_exist():
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "docs" / "evaluation.md").read_text())
    assert len(links) >= 8
    for link in links:
        assert (ROOT / "docs" / link).exists(), link
