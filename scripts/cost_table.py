"""Table of test costs by file, from `pytest --cost=FILE.json`.

python scripts/cost_table.py [BEFORE.json] AFTER.json [--least 5]
"""

import argparse
import collections
import json
import pathlib

COLUMNS = ("tests", "CPU s", "child processes", "tracing", "lowering", "compilation", "programs")
JAX_COSTS = ("trace", "lower", "compile", "programs")
"""What `--cost` calls the last four."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=pathlib.Path, nargs="+", metavar="FILE", help="of one suite, or BEFORE and AFTER")
    parser.add_argument("--least", type=float, default=5.0, help="CPU seconds of a test file that has a row of its own")
    args = parser.parse_args()
    *before, after = (by_file(path) for path in args.files)
    if len(before) > 1:
        parser.error(f"expected one file or two, got {len(args.files)}")
    names = {name for found in (*before, after) for name in found}
    order = sorted(names, key=lambda name: -max(found[name]["CPU s"] for found in (*before, after)))
    large = [name for name in order if max(found[name]["CPU s"] for found in (*before, after)) >= args.least]
    columns = (*(f"{column} before" for column in COLUMNS[:3] if before), *COLUMNS)
    print(f"| file | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    groups = {name: [name] for name in large} | {f"{len(order) - len(large)} others": order[len(large) :]}
    for title, group in (groups | {"together": order}).items():
        values = [sum(found[name][column] for name in group) for found in before for column in COLUMNS[:3]]
        values += [sum(after[name][column] for name in group) for column in COLUMNS]
        print(f"| {title} | " + " | ".join(f"{value:,.0f}" for value in values) + " |")


def by_file(path: pathlib.Path) -> dict[str, collections.Counter]:
    """The columns of each test file; zero of one that has no test."""
    files: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for test, cost in json.loads(path.read_text()).items():
        if cost:
            values = 1, cost["own"] + cost["children"], cost["children"], *(cost[name] for name in JAX_COSTS)
            files[pathlib.Path(test.partition("::")[0]).stem].update(dict(zip(COLUMNS, values, strict=True)))
    return files


if __name__ == "__main__":
    main()
