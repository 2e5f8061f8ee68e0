"""Runs the notebooks of the tutorial, and keeps the Chinese ones equal to the English ones in code and outputs.

python scripts/notebooks.py run docs/tutorial/*.ipynb      # executes each in a fresh kernel and writes its outputs
python scripts/notebooks.py check docs/tutorial/*.ipynb    # executes each and writes nothing
python scripts/notebooks.py translate-check                # compares the code cells of docs/zh/tutorial
python scripts/notebooks.py copy-outputs                   # copies outputs into docs/zh/tutorial

`run` and `check` need `pip install -e '.[docs]'`.  A notebook runs in its own folder and imports the package of this
checkout.  What a run writes depends on the code alone: cell ids are positions, and times, versions and the names of
machines are left out, so that a second run changes little.
"""

import argparse
import base64
import io
import json
import os
import pathlib
import sys
import time
from typing import Any

from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
ENGLISH, CHINESE = ROOT / "docs" / "tutorial", ROOT / "docs" / "zh" / "tutorial"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TIMEOUT = 600  # seconds of one cell


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, title in (("run", "execute notebooks and write their outputs"), ("check", "execute notebooks only")):
        command = commands.add_parser(name, help=title)
        command.add_argument("files", type=pathlib.Path, nargs="+", metavar="NOTEBOOK")
    commands.add_parser("translate-check", help="compare the code cells of both languages")
    commands.add_parser("copy-outputs", help="copy outputs of the English notebooks into the Chinese ones")
    args = parser.parse_args(argv)
    if args.command in ("run", "check"):
        for path in args.files:
            print(f"{path}: ", end="", flush=True)
            started = time.monotonic()
            notebook = execute(path)
            if args.command == "run":
                write(path, notebook)
            print(f"{time.monotonic() - started:.0f} s", flush=True)
        return
    for path, english, chinese in twins():
        if differences := differing_cells(english, chinese):
            sys.exit(f"{path}: its code differs from that of {ENGLISH / path.name} in {', '.join(differences)}")
        if args.command == "copy-outputs":
            write(path, with_outputs(chinese, english))
        print(f"{path}: same code cells")


def execute(path: pathlib.Path) -> dict[str, Any]:
    """The notebook with the outputs of a fresh kernel, in a form that depends on the code alone.

    Raises:
        nbclient.exceptions.CellExecutionError: with the cell and its traceback, if one fails.
    """
    import nbclient
    import nbformat

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    notebook = nbformat.read(path, as_version=4)
    options: dict[str, Any] = {"record_timing": False, "coalesce_streams": True}
    folder = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=folder, **options).execute()
    return normalised(json.loads(nbformat.writes(notebook)))


def normalised(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with ids by position, fixed metadata, and pictures without the version of their program."""
    cells = []
    for n, cell in enumerate(notebook["cells"]):
        cell = {**cell, "id": f"cell-{n:02}", "metadata": {}}
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output["metadata"] = {}
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = plain_png("".join(png))
        cells.append(cell)
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def plain_png(encoded: str) -> str:
    """The picture as a PNG of 256 colours without text chunks, base64: a third of the bytes."""
    picture, file = Image.open(io.BytesIO(base64.b64decode(encoded))), io.BytesIO()
    if picture.mode == "P":
        return encoded
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def twins() -> list[tuple[pathlib.Path, dict[str, Any], dict[str, Any]]]:
    """(path of the Chinese notebook, the English one, the Chinese one) of every notebook that has both."""
    paths = [path for path in sorted(CHINESE.glob("*.ipynb")) if (ENGLISH / path.name).exists()]
    return [(path, read(ENGLISH / path.name), read(path)) for path in paths]


def differing_cells(english: dict[str, Any], chinese: dict[str, Any]) -> list[str]:
    """The names of cells in which type or code differ; markdown may say anything."""
    pairs = [[(c["cell_type"], source(c)) for c in notebook["cells"]] for notebook in (english, chinese)]
    code = [[text if kind == "code" else kind for kind, text in cells] for cells in pairs]
    found = [f"cell {n}" for n, (a, b) in enumerate(zip(*code, strict=False)) if a != b]
    return found + (["the number of cells"] if len(code[0]) != len(code[1]) else [])


def with_outputs(notebook: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs and numbers of the other's code cells."""
    copied = ("outputs", "execution_count")
    pairs = zip(notebook["cells"], original["cells"], strict=True)
    cells = [{**cell, **{k: other[k] for k in copied if k in other}} for cell, other in pairs]
    return normalised({**notebook, "cells": cells})


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: pathlib.Path, notebook: dict[str, Any]) -> None:
    """The notebook as a file: one line of text for each line of a cell, in the order of keys that Jupyter has."""
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
