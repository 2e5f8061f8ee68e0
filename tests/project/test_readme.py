"""The README is a program: its notebook lines run, and the commands and files it names exist."""

import pathlib
import re

import numpy as np
import pytest
import tyro

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
    for path in re.findall(r"\]\(([^)#:]+)\)|configs/\w+\.py", README):
        assert not path or (ROOT / path).exists(), path
    for path in re.findall(r"configs/\w+\.py", README):
        assert (ROOT / path).exists(), path


def test_its_commands_are_the_makefile_s_and_the_programs_own():
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{command}:", makefile, re.M), command
    programs = (ROOT / "ddpm_jax" / "programs" / "sample.py").read_text() + (
        ROOT / "ddpm_jax" / "config" / "flags.py"
    ).read_text()
    for flag in set(re.findall(r"sample\.py[^\n]* (--[a-z]+)", README)):
        assert f"    {flag[2:]}:" in programs, flag


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
