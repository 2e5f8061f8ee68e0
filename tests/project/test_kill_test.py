"""The drill on a small scale: a kill of each program; and that it would notice a loss."""

import json
import pathlib
import sys

import pytest
from run_programs import ROOT

from benchmarks import drill, drilled


@pytest.mark.slow
def test_a_kill_of_each_program_loses_nothing(tmp_path, capsys):
    out = tmp_path / "drill.json"
    assert drill.main(["--kills", "6", "--seed", "3", "--cache", str(ROOT / ".jax_cache"), "--out", str(out)]) == 0
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
    monkeypatch.setattr(drill, "write_digits", lambda folder: None)
    (tmp_path / "forgetful.py").write_text(FORGETFUL)

    def safe(folder: pathlib.Path):
        return drilled.file_stamps(folder, "done")

    kind = drilled.KilledProgram(
        "forgetful", 1, lambda home, folder: [sys.executable, str(home / "forgetful.py"), str(folder)],
        (drilled.KillMoment("at its start", 1, lambda folder, marks: (folder / "done").exists(), 0.1),),
        lambda folder: None, lambda folder: False, safe,
        lambda before, folder, said: drilled.lost_or_rewritten(before, safe(folder)),
        drilled.no_steps, drilled.file_digests,
    )  # fmt: skip
    one = drill.KillTest(tmp_path, tmp_path / "cache")
    one.run_undisturbed(kind)
    (blow,) = drill.run_kills(one, kind, 0, 1, seed=0)
    forgotten, differs = blow["lost"]
    assert forgotten == "done" and differs.endswith("other than undisturbed: result")
