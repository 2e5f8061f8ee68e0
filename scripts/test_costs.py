"""Table of what tests take, by file, from `pytest --cost=FILE.json`.

python scripts/test_costs.py AFTER.json [--least 5]
"""

import argparse
import collections
import json
import pathlib

COLUMNS = ("tests", "CPU s", "child processes", "tracing", "lowering", "compilation", "programs")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--least", type=float, default=5.0, help="CPU seconds of a file that has a row of its own")
    args = parser.parse_args()
    files: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for test, cost in json.loads(args.file.read_text()).items():
        if cost:
            files[pathlib.Path(test.partition("::")[0]).stem].update(row(cost))
    ordered = sorted(files.items(), key=lambda item: -item[1]["CPU s"])
    large = [item for item in ordered if item[1]["CPU s"] >= args.least]
    rest, every = (
        sum((counts for _, counts in some), collections.Counter()) for some in (ordered[len(large) :], ordered)
    )
    print(f"| file | {' | '.join(COLUMNS)} |\n|---{'|---' * len(COLUMNS)}|")
    for name, counts in (*large, (f"{len(ordered) - len(large)} others", rest), ("together", every)):
        print(f"| {name} | " + " | ".join(f"{counts[column]:.0f}" for column in COLUMNS) + " |")


def row(cost: dict[str, float]) -> dict[str, float]:
    """What one test adds to the columns of its file."""
    cpu = cost["own"] + cost["children"]
    return dict(
        zip(
            COLUMNS,
            (1, cpu, cost["children"], *(cost[n] for n in ("trace", "lower", "compile", "programs"))),
            strict=True,
        )
    )


if __name__ == "__main__":
    main()
