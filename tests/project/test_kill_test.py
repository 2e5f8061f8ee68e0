"""The kill test on a small scale: each program is killed once; a loss is noticed."""

import json
import pathlib
import sys

import pytest
from run_programs import ROOT

from scripts import kill_test, killed_programs


@pytest.mark.slow
def test_a_kill_of_each_program_loses_nothing(tmp_path, capsys):
    out = tmp_path / "kill_test.json"
    assert kill_test.main(["--kills", "6", "--seed", "3", "--cache", str(ROOT / ".jax_cache"), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    kills = {name: tally["kills"] for name, tally in found["tally"].items()}
    assert kills == {"train": 2, "prepare": 1, "sample": 1, "likelihood": 1, "samples": 1, "together": 6}
    assert found["tally"]["together"]["lost"] == 0 == len(found["lost"])
    assert "together" in capsys.readouterr().out


FORGETFUL = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
begun = (folder / "done").exists()
(folder / "done").write_text("so far")
time.sleep(0.2)
(folder / "result").write_text(f"begun before: {begun}")
"""


def test_a_program_that_forgets_is_noticed(tmp_path, monkeypatch):
    """It writes again what was safe, and leaves another result than undisturbed."""
    monkeypatch.setattr(kill_test, "write_digits", lambda folder: None)
    (tmp_path / "forgetful.py").write_text(FORGETFUL)

    def safe(folder: pathlib.Path):
        return killed_programs.file_stamps(folder, "done")

    kind = killed_programs.KilledProgram(
        "forgetful", 1, lambda home, folder: [sys.executable, str(home / "forgetful.py"), str(folder)],
        (killed_programs.KillMoment("at its start", 1, lambda folder, marks: (folder / "done").exists(), 0.1),),
        lambda folder: None, lambda folder: False, safe,
        lambda before, folder, output: killed_programs.lost_or_rewritten(before, safe(folder)),
        killed_programs.no_steps, killed_programs.file_digests,
    )  # fmt: skip
    one = kill_test.KillTest(tmp_path, tmp_path / "cache")
    one.run_undisturbed(kind)
    (blow,) = kill_test.run_kills(one, kind, 0, 1, seed=0)
    forgotten, differs = blow["lost"]
    assert forgotten == "done" and differs.endswith("other than undisturbed: result")
