"""The notebooks of the tutorial: executed, small, the same code in both languages, and listed in their index."""

import base64
import importlib
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from run_programs import OPTIMISED, environment

from scripts import notebooks

PATHS = sorted(notebooks.ENGLISH.glob("*.ipynb"))
INDEX = notebooks.ENGLISH / "README.md"
MOST_BYTES = 500_000

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in notebooks.read(path)["cells"] if cell["cell_type"] == "code"]


def cell(kind, source, **parts):
    return {"cell_type": kind, "id": "x", "metadata": {}, "source": [source], **parts}


def notebook(*cells):
    return {"cells": list(cells), "metadata": {"language_info": {"version": "3.1"}}, "nbformat": 4, "nbformat_minor": 5}


@each_notebook
def test_every_cell_was_executed_in_order_without_errors_and_warnings(path):
    cells = code_cells(path)
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [output for c in cells for output in c["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}


@each_notebook
def test_it_has_pictures_and_links_to_files_that_exist(path):
    pictures = [o for c in code_cells(path) for o in c["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) >= 4
    text = "\n".join(notebooks.source(c) for c in notebooks.read(path)["cells"] if c["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (path.parent / link).exists(), link


@each_notebook
def test_the_file_is_small_and_as_the_script_writes_it(path):
    assert path.stat().st_size < MOST_BYTES
    assert notebooks.normalised(notebooks.read(path)) == notebooks.read(path)
    assert " at 0x" not in path.read_text(encoding="utf-8"), "an address in memory, which differs in every run"


@each_notebook
def test_the_chinese_notebook_has_the_same_code_and_outputs(path):
    english, chinese = notebooks.read(path), notebooks.read(notebooks.CHINESE / path.name)
    assert notebooks.differing_cells(english, chinese) == []
    assert notebooks.with_outputs(chinese, english) == chinese


@each_notebook
def test_the_index_lists_it(path):
    assert f"]({path.name})" in INDEX.read_text(encoding="utf-8")


def test_the_index_has_eleven_formulas_and_names_functions_that_exist():
    _, index = INDEX.read_text(encoding="utf-8").split("## Formula index")
    rows = [line for line in index.splitlines() if line.startswith("| $")]
    assert len(rows) == 11
    for row in rows:
        names = re.findall(r"`(\w+)(?:\.(\w+))?`", row.rsplit("|", 2)[1])
        assert names, row
        for module, function in names:
            found = importlib.import_module(f"ddpm_jax.{module}")
            assert not function or callable(getattr(found, function)), row
    for link in re.findall(r"\]\((\w+\.ipynb)\)", INDEX.read_text(encoding="utf-8")):
        assert (INDEX.parent / link).exists(), link


@pytest.mark.slow
@each_notebook
def test_it_runs_from_a_fresh_kernel(path):
    script = notebooks.ROOT / "scripts" / "notebooks.py"
    subprocess.run([sys.executable, script, "check", path], check=True, env=environment() | OPTIMISED)


def test_differing_cells_are_named():
    english = notebook(cell("markdown", "text"), cell("code", "a = 1"), cell("code", "b = 2"))
    translated = notebook(cell("markdown", "文字"), cell("code", "a = 1"), cell("code", "b = 2"))
    changed = notebook(cell("code", "text"), cell("code", "a = 1"), cell("code", "b = 3"), cell("code", "c"))
    assert notebooks.differing_cells(english, translated) == []
    assert notebooks.differing_cells(english, changed) == ["cell 0", "cell 2", "the number of cells"]


def test_outputs_are_copied_and_everything_else_stays():
    outputs = [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}]
    english = notebook(cell("markdown", "text"), cell("code", "print(1)", outputs=outputs, execution_count=1))
    chinese = notebook(cell("markdown", "文字"), cell("code", "print(1)", outputs=[], execution_count=None))
    copied = notebooks.with_outputs(chinese, english)
    assert [c["source"] for c in copied["cells"]] == [["文字"], ["print(1)"]]
    assert copied["cells"][1]["outputs"] == outputs
    assert copied["cells"][1]["execution_count"] == 1


def test_pictures_lose_their_text_and_are_written_once():
    pixels, text, file = np.arange(3 * 64).reshape(8, 8, 3).astype(np.uint8), PngInfo(), io.BytesIO()
    text.add_text("Software", "a version")
    Image.fromarray(pixels).save(file, "PNG", pnginfo=text)
    plain = notebooks.plain_png(base64.b64encode(file.getvalue()).decode())
    written = base64.b64decode(plain)
    assert b"version" in file.getvalue() and b"version" not in written
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(written)).convert("RGB")), pixels)
    assert notebooks.plain_png(plain) == plain


def test_translations_are_checked_and_outputs_copied_by_the_command(tmp_path, monkeypatch, capsys):
    english, chinese = tmp_path / "docs", tmp_path / "zh"
    monkeypatch.setattr(notebooks, "ENGLISH", english)
    monkeypatch.setattr(notebooks, "CHINESE", chinese)
    for folder, outputs in ((english, [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}]), (chinese, [])):
        folder.mkdir()
        notebooks.write(folder / "a.ipynb", notebook(cell("code", "print(1)", outputs=outputs, execution_count=1)))
    notebooks.main(["copy-outputs"])
    assert "a.ipynb: same code cells" in capsys.readouterr().out
    copied = notebooks.read(chinese / "a.ipynb")
    assert copied["cells"][0]["outputs"][0]["text"] == ["1\n"]
    assert "version" not in json.dumps(copied["metadata"])
    notebooks.write(chinese / "a.ipynb", notebook(cell("code", "print(2)", outputs=[], execution_count=1)))
    with pytest.raises(SystemExit, match=r"a\.ipynb: its code differs from that of .*a\.ipynb in cell 0"):
        notebooks.main(["translate-check"])
