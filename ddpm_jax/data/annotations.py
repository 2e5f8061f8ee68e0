"""Labels and captions of the images in a folder: from the names of its sub-folders, or from .csv files beside them.

A .csv file has a header with the column `file`, a path below the folder that the .csv lies in, and `label` or
`caption` or both; other columns are not read.
"""

import csv
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.folder_report import FolderReport, indent_lines, join_first, printable

COLUMNS = ("label", "caption")


class Annotations(NamedTuple):
    """Labels and captions of N images."""

    labels: np.ndarray | None  # int32 [N], or None
    label_names: tuple[str, ...]  # what the labels 0, 1, ... are called; () without labels
    captions: tuple[str, ...] | None  # a text for each image, or None
    lines: tuple[str, ...]  # their origin, for the report


def read_annotations(root: Path, report: FolderReport, only_splits: bool) -> Annotations:
    """The labels and captions of the usable images of a folder; a table may also name the bad ones.

    Labels are those of the tables; if no table has any, an image's label is its first-level sub-folder.  They are
    numbered 0, 1, ... in the order of their names, which is numerical if all are numbers.  Names of labels and of files
    are equal if their normal forms (NFC) are.

    Args:
        only_splits: the first-level sub-folders are splits, as train and test, and not labels.

    Raises:
        ValueError: if a table cannot be read, names a file that is not there or an image twice, or misses one.
    """
    paths = [file.path for file in report.good()]
    columns = _read_tables(root, report.tables, {file.path for file in report.files})
    lines = [f"tables    {join_first(report.tables)}"] if report.tables else []
    captions = _column_values("caption", columns, paths)
    label_texts, origin = _column_values("label", columns, paths), "of the column 'label'"
    if label_texts is None:
        label_texts, origin = _labels_by_folder(paths, only_splits)
    if label_texts is None:
        return Annotations(None, (), captions, (*lines, f"labels    {origin}"))
    names = _label_names(label_texts)
    lines.append(f"labels    {origin}: {len(names):,} ({join_first(names, 6)})")
    number = {name: i for i, name in enumerate(names)}
    return Annotations(np.array([number[_nfc(text)] for text in label_texts], np.int32), names, captions, tuple(lines))


def _labels_by_folder(paths: Sequence[str], only_splits: bool) -> tuple[tuple[str, ...] | None, str]:
    """The sub-folder of each image, or None if they are no labels; and which of the two, for the report."""
    inner = [path.split("/", 1)[1] if only_splits else path for path in paths]
    loose = [path for path, rest in zip(paths, inner, strict=True) if "/" not in rest]
    if len(loose) == len(paths):
        return None, "none: no sub-folders"
    if loose:
        return None, f"none: {len(loose):,} images lie outside of the sub-folders ({join_first(loose, 3)})"
    return tuple(rest.split("/", 1)[0] for rest in inner), "by sub-folder"


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _label_names(label_texts: Sequence[str]) -> tuple[str, ...]:
    """The names of the labels 0, 1, ..., in normal form."""
    names = set(label_texts)
    if all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(dict.fromkeys(map(_nfc, sorted(names))))


def _column_values(
    column: str, columns: dict[str, dict[str, tuple[str, str]]], paths: Sequence[str]
) -> tuple[str, ...] | None:
    """The value of each image in a column, or None if no table has it."""
    if column not in columns:
        return None
    cells = columns[column]
    missing = [path for path in paths if path not in cells]
    if missing:
        hint = f"add rows for them:{indent_lines([*map(printable, missing)])}"
        raise ValueError(f"{len(missing):,} images have no {column} in any table; {hint}")
    return tuple(cells[path][1] for path in paths)


def _read_tables(root: Path, tables: Sequence[str], known: set[str]) -> dict[str, dict[str, tuple[str, str]]]:
    """Location and text of the cells of all tables, by column and path."""
    columns: dict[str, dict[str, tuple[str, str]]] = {}
    absent, twice, alike = [], [], {_nfc(path): path for path in known}
    for table in tables:
        folder = table.rpartition("/")[0]
        for where, row in _read_rows(root, table):
            path = str(Path(folder, row["file"]).as_posix())
            path = path if path in known else alike.get(_nfc(path), path)
            named = f"{where}: {printable(row['file'][:200])}"
            if path not in known:
                absent.append(named)
            for column in COLUMNS:
                if column in row:
                    before, _ = columns.setdefault(column, {}).setdefault(path, (where, row[column]))
                    if before != where:
                        twice.append(f"{named}, which has its {column} from {before}")
    if absent:
        raise ValueError(f"{len(absent):,} rows name files that are no images of this folder:{indent_lines(absent)}")
    if twice:
        raise ValueError(f"{len(twice):,} rows name images a second time:{indent_lines(twice)}")
    return columns


def _read_rows(root: Path, table: str) -> Iterator[tuple[str, dict[str, str]]]:
    """("labels.csv, line 2", {"file": ..., "label": ...}) for each row."""
    name = printable(str(root / table))
    try:
        with (root / table).open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            rows = [(f"{printable(table)}, line {lines.line_num}", row) for row in lines if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{name}: cannot be read as a table in UTF-8: {error}") from error
    known = [column for column in header if column in ("file", *COLUMNS)]
    if "file" not in known or len(known) < 2 or len(known) > len(set(known)):
        raise ValueError(
            f"{name}: expected a header with the columns file and label, file and caption, or all three, found "
            f"{printable(','.join(header)[:80]) or 'none'}; if it is not about these images, move it elsewhere"
        )
    for where, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{where}: {len(row)} values under {len(header)} columns; quote a value that has a comma")
        values = {column: row[header.index(column)].strip() for column in known}
        if not values["file"] or not values.get("label", "-"):
            raise ValueError(f"{where}: an empty {'label' if values['file'] else 'file'}")
        yield where, values
