"""The list of faults that the tests must notice fits the code, and covers it."""

import ast
import builtins
import pathlib

import pytest

from scripts import mutants

ROOT = pathlib.Path(__file__).parents[2]
FAULTS = mutants.load_faults(ROOT / "tests" / "faults" / "mutants.toml")


def test_every_fault_is_a_line_of_the_code_and_its_tests_are_there():
    mutants.check_faults(ROOT, FAULTS)
    assert len(FAULTS) >= 80


def test_no_fault_is_a_name_that_is_not_there():
    """Which any test would notice."""
    for fault in FAULTS:
        nodes = [*ast.walk(ast.parse(mutants.insert_fault((ROOT / fault.file).read_text(), fault)))]
        names = [node for node in nodes if isinstance(node, ast.Name)]
        known = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {*dir(builtins), "__file__"}
        known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        known |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler)}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        assert not {node.id for node in names} - known, fault.name


def test_every_module_has_a_fault():
    parts = {path.relative_to(ROOT / "ddpm_jax").with_suffix("").parts[0] for path in (ROOT / "ddpm_jax").rglob("*.py")}
    covered = {pathlib.Path(fault.file).with_suffix("").parts[1] for fault in FAULTS if "/" in fault.file}
    assert parts - covered == {"__init__", "__main__"}


def test_a_fault_replaces_one_line_and_keeps_its_indentation():
    fault = mutants.Fault("one", "a.py", line="x = 1", wrong="x = 2", kind="a number")
    assert mutants.insert_fault("def f():\n    x = 1\n    return x\n", fault) == "def f():\n    x = 2\n    return x\n"
    with pytest.raises(ValueError, match=r"one: expected one line 'x = 1' in a\.py, found 2"):
        mutants.insert_fault("x = 1\nx = 1\n", fault)
    later = mutants.Fault("one", "a.py", line="x = 1", wrong="x = 2", kind="a number", after="y = 0")
    assert mutants.insert_fault("x = 1\ny = 0\nx = 1\n", later) == "x = 1\ny = 0\nx = 2\n"
