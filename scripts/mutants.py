"""Mutation tests: each fault of tests/faults/mutants.toml is put into a copy of the tree, where the tests that claim
its file are run.  The test file that notices it must pass without it.

    python scripts/mutants.py                        all faults, quick tests
    python scripts/mutants.py NAME ... --all         some faults, slow tests too
    python scripts/mutants.py --out FILE.json        results are kept: the same command continues, and
                                                     with --all takes up those that quick tests missed
    python scripts/mutants.py --table BEFORE.json AFTER.json

Exit status 0 if at least 95 % are noticed, 1 if fewer, 2 if the list is wrong or tests fail without a fault.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAULTS = ROOT / "tests" / "faults" / "mutants.toml"
REQUIRED_SHARE = 0.95
PASSING_STATUSES = (0, 5)  # 5: no test has this mark
FAILURE = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Fault:
    """One wrong line, with the test files that claim its source file."""

    name: str
    file: str
    line: str
    wrong: str
    kind: str
    after: str = ""
    tests: tuple[str, ...] = ()


def load_faults(path: pathlib.Path) -> list[Fault]:
    """The faults of a list; the longest entry of its claims that begins a file's path says which tests claim it."""
    content, faults = tomllib.loads(path.read_text()), []
    claims = sorted(content["claims"].items(), key=lambda item: len(item[0]))
    for row in content["fault"]:
        tests = [names for prefix, names in claims if row["file"].startswith(prefix)]
        faults.append(Fault(**row, tests=tuple(tests[-1]) if tests else ()))
    twice = [name for name, count in collections.Counter(fault.name for fault in faults).items() if count > 1]
    wrong = [f"the name {name!r} is there twice" for name in twice]
    wrong += [f"{fault.name}: the wrong line is the line itself" for fault in faults if fault.line == fault.wrong]
    if wrong:
        raise ValueError("\n".join(wrong))
    return faults


def insert_fault(text: str, fault: Fault) -> str:
    """The text of the fault's file with the wrong line in it.

    Raises:
        ValueError: if the line is not there exactly once or, with `after`, not behind that line.
    """
    lines = text.splitlines(keepends=True)
    stripped = [line.strip() for line in lines]
    start = stripped.index(fault.after) + 1 if fault.after and fault.after in stripped else 0
    places = [i for i in range(start, len(lines)) if stripped[i] == fault.line]
    if not places or (len(places) > 1 and not start):
        raise ValueError(f"{fault.name}: expected one line {fault.line!r} in {fault.file}, found {len(places)}")
    lines[places[0]] = lines[places[0]].replace(fault.line, fault.wrong)
    return "".join(lines)


def check_faults(root: pathlib.Path, faults: Sequence[Fault]) -> None:
    """Raises a ValueError that names every fault which does not fit a tree."""
    wrong = []
    for fault in faults:
        try:
            compile(insert_fault((root / fault.file).read_text(), fault), fault.file, "exec")
        except (ValueError, OSError, SyntaxError) as error:
            wrong.append(str(error) if isinstance(error, ValueError) else f"{fault.name}: {error}")
        wrong += [f"{fault.name}: no test file {name}" for name in fault.tests if not (root / name).is_file()]
        wrong += [] if fault.tests else [f"{fault.name}: no test file claims {fault.file}"]
    if wrong:
        raise ValueError("\n".join(wrong))


def copy_tree(root: pathlib.Path, to: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """A copy of the files that git does not ignore, with a compilation cache that all copies share."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    (to / ".jax_cache").symlink_to(cache.resolve(), target_is_directory=True)
    return to


def run_pytest(copy: pathlib.Path, tests: Sequence[str], marker: str, timeout: float) -> tuple[int | None, str]:
    """The exit status of the tests in a copy, None after the timeout, and what they print."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
    command += ["-m", marker, *tests]
    env = os.environ | {"PYTHONPATH": str(copy), "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "500"}
    run = subprocess.Popen(
        command, cwd=copy, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = run.communicate(timeout=timeout)
        return run.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:  # and the programs that the tests have started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def run_faults(faults: Sequence[Fault], args: argparse.Namespace) -> int:
    """Runs the faults without a result, prints and keeps each result; returns the exit status."""
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    copies: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
    lock, failing = threading.Lock(), dict[tuple[str, str], bool]()
    locks: dict[tuple[str, str], Any] = collections.defaultdict(threading.Lock)

    def fails(name: str, marked: str, copy: pathlib.Path) -> bool:
        with locks[name, marked]:
            if (name, marked) not in failing:  # once for all faults
                failing[name, marked] = run_pytest(copy, [name], marked, args.timeout)[0] not in PASSING_STATUSES
        return failing[name, marked]

    def one(fault: Fault) -> bool | None:
        row = dataclasses.asdict(fault)
        text = {name: row[name] for name in ("line", "wrong", "after")}
        known = results.get(fault.name)
        if known and text == known["text"] and (known["noticed"] or known["all"] or not args.all):
            return known["noticed"]
        copy, begun = copies.get(), time.monotonic()
        path = copy / fault.file
        right = path.read_text()
        try:
            path.write_text(insert_fault(right, fault))
            try:
                for marked in ("not slow", "slow") if args.all else ("not slow",):
                    status, output = run_pytest(copy, fault.tests, marked, args.timeout)
                    if noticed := status not in PASSING_STATUSES:
                        break
            finally:
                path.write_text(right)
            seconds, failure = round(time.monotonic() - begun, 1), FAILURE.search(output)
            by = "hung" if status is None else failure[1] if failure else f"exit status {status}"
            # the test file that noticed it, or all where none is named, must pass without it
            suspects = [by.partition("::")[0]] if failure else fault.tests
            bad = [name for name in suspects if fails(name, marked, copy)] if noticed else []
        finally:
            copies.put(copy)
        if bad:
            print(f"{fault.name}: tests fail without the fault: {', '.join(bad)}", flush=True)
            return None
        print(f"{fault.name}: {f'noticed by {by}' if noticed else 'NOT NOTICED'}, {seconds} s", flush=True)
        with lock:
            results[fault.name] = {
                "file": fault.file, "kind": fault.kind, "noticed": noticed, "by": by if noticed else None,
                "seconds": seconds, "all": args.all, "text": text,
            }  # fmt: skip
            if args.out:
                part = args.out.with_name(args.out.name + ".part")
                part.write_text(json.dumps(results, indent=1) + "\n")
                part.replace(args.out)
        return noticed

    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as scratch:
        cache = args.cache or pathlib.Path(scratch, "cache")
        cache.mkdir(parents=True, exist_ok=True)
        for i in range(args.jobs):
            copies.put(copy_tree(args.root.resolve(), pathlib.Path(scratch, f"copy-{i}"), cache))
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            found = list(pool.map(one, faults))
    outcomes = [noticed for noticed in found if noticed is not None]
    noticed_fraction = sum(outcomes) / max(1, len(outcomes))
    print(f"{sum(outcomes)} of {len(outcomes)} noticed ({noticed_fraction:.0%})")
    return 2 if len(outcomes) < len(found) else 0 if noticed_fraction >= REQUIRED_SHARE else 1


def table(paths: Sequence[pathlib.Path]) -> str:
    """Results as a markdown table, a column for each file."""
    results = {f"noticed by ({path.stem})": json.loads(path.read_text()) for path in paths}
    lines = ["| " + " | ".join(["fault", "file", *results]) + " |", "|---" * (2 + len(results)) + "|"]
    for name, file in {name: row["file"] for found in results.values() for name, row in found.items()}.items():
        by = [(found[name]["by"] or "**not noticed**") if name in found else "-" for found in results.values()]
        lines.append("| " + " | ".join([name, file, *by]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutants.py", description="Runs the tests against known faults.")
    parser.add_argument("names", nargs="*", help="the faults to run (default: all)")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the tree (default: this one)")
    parser.add_argument("--file", type=pathlib.Path, default=FAULTS, help="the list of faults")
    parser.add_argument("--all", action="store_true", help="run slow tests too")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time, each in a copy of the tree")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file of results, which is continued")
    parser.add_argument("--cache", type=pathlib.Path, help="a folder for compiled programs, to keep them between calls")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a test run may take")
    parser.add_argument("--check", action="store_true", help="only make sure that the list fits the tree")
    parser.add_argument("--table", type=pathlib.Path, nargs="+", metavar="FILE.json", help="print results as a table")
    args = parser.parse_args(argv)
    if args.table:
        print(table(args.table))
        return 0
    try:
        every = {fault.name: fault for fault in load_faults(args.file)}
        unknown = sorted(set(args.names) - set(every))
        if unknown:
            raise ValueError(f"there is no fault {', '.join(unknown)}")
        faults = [every[name] for name in args.names or every]
        check_faults(args.root, faults)
    except (ValueError, TypeError, KeyError, OSError) as error:
        print(f"{args.file}: {error}", file=sys.stderr)
        return 2
    print(f"{len(faults)} faults fit the tree", flush=True)
    return 0 if args.check else run_faults(faults, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
