"""A model card: what a run is, how it was trained, what is known of it, and what is not."""

import html
import json
import math
import pathlib
import re
import shutil
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import checkpoint, data, log
from ddpm_jax import config as configs
from ddpm_jax.data import survey
from ddpm_jax.evaluate import plots, protocol, samples
from ddpm_jax.evaluate.options import Report
from ddpm_jax.evaluate.subject import Subject, images

COMMANDS = {
    "likelihood": "bits/dim of the held-out images",
    "samples": "Fréchet distance, precision and recall, density and coverage",
    "table": "samplers beside each other",
    "calls": "samplers against the network calls that they take",
    "rate_distortion": "rate and distortion along the chain",
    "progressive": "the way from noise to image",
    "predictions": "predicted images over time",
    "stochastic": "images that share an x_t",
    "interpolation": "between two images",
    "neighbours": "nearest training images",
}
"""The other commands of the evaluation, whose files begin with their names, and what they find out."""


class Result(NamedTuple):
    """A file of the evaluation.

    Attributes:
        path: of the JSON file.
        kind: the command that wrote it.
        own: whether it is about the weights that the report is about.
        numbers: what it holds, with their protocols.
        lines: the numbers and their protocols, one to a line.
        made_with: versions and machine.
        verdict: in words, where there is one beside the numbers.
    """

    path: pathlib.Path
    kind: str
    own: bool
    numbers: list[protocol.Number]
    lines: list[str]
    made_with: dict[str, Any]
    verdict: str


class Card:
    """The text of a report while it is written.

    Attributes:
        home: the folder that links are relative to.
        missing: one line for each thing that is not in it, and why.
    """

    def __init__(self, home: pathlib.Path):
        self.home, self.parts, self.missing = home.resolve(), [], []
        (self.home / "report").mkdir(parents=True, exist_ok=True)

    def add(self, *parts: str) -> None:
        """Adds paragraphs, tables or headings, an empty line between them."""
        self.parts.extend(parts)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds a table."""
        cells = [[plain(str(cell)).replace("|", "\\|") for cell in row] for row in [head, *rows]]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        self.add("\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]))

    def picture(self, path: pathlib.Path, caption: str) -> None:
        """Adds a picture and what it shows; copied if it lies elsewhere."""
        path = path.resolve()
        if not path.is_relative_to(self.home):
            path = pathlib.Path(shutil.copy(path, self.home / "report" / f"{path.parent.name}-{path.name}"))
        link = urllib.parse.quote(path.relative_to(self.home).as_posix())
        self.add(f"![{plain(caption.partition(':')[0])}]({link})", plain(caption))

    def text(self) -> str:
        """The whole."""
        return "\n\n".join(self.parts) + "\n"


def run(subject: Subject, options: Report) -> int:
    """Writes report.md, and says where it is and what it lacks."""
    home = subject.out if subject.which.out else subject.model.workdir
    card, results = Card(home), found(subject)
    with checkpoint.Checkpoints(subject.model.workdir / "checkpoints", read_only=True) as saved:
        meta = saved.meta(subject.model.step)
    config = configs.from_dict(meta["config"])
    introduce(card, subject, config, meta)
    settings(card, config)
    training(card, subject, config)
    measurements(card, results)
    pictures(card, subject, results)
    for kind, what in COMMANDS.items():
        if not any(result.own and result.kind == kind for result in results):
            card.missing.append(f"not measured: {what} of these weights: `{command(subject, kind)}`")
    lines = "\n".join(f"- {plain(line)}" for line in card.missing)
    card.add("## What is missing", lines or "Nothing: every command has been run on these weights.")
    limits(card, subject, config, results)
    reproduce(card, subject)
    (home / "report.md").write_text(card.text(), encoding="utf-8")
    count = sum(len(result.lines) for result in results)
    print(f"{home / 'report.md'}: {count} numbers from {len(results)} files of {subject.out}")
    for line in card.missing:
        print(f"  {line}")
    return 0


def command(subject: Subject, kind: str) -> str:
    """The command that measures something, RUN being the run's folder."""
    which = subject.which.model
    flags = [f"--checkpoint {subject.model.step}"] if which.checkpoint is not None else []
    flags += ["--weights raw"] if which.weights == "raw" else []
    return " ".join(["ddpm-jax evaluate RUN", kind, *flags])


def found(subject: Subject) -> list[Result]:
    """The files of the evaluation that commands wrote: those of these weights first, in the order of the commands."""
    results, own = [], f"ckpt={subject.weights()['ckpt']}"
    for path in sorted(subject.out.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}): remove it") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no result, but {str(content)[:60]}: remove it")
        kind = path.stem.partition("-")[0]
        numbers = protocol.read(path) if "numbers" in content else []
        lines = [protocol.line(number) for number in numbers]
        if kind in ("table", "calls"):
            lines += [line for row in content["rows"].values() for line in row]
        if kind not in COMMANDS and not lines:
            print(f"left out: {path} holds no numbers")
            continue
        # pictures without numbers have a manifest, with versions and machine at its top
        of = any(own in line for line in lines) or content.get("fingerprint") == subject.model.fingerprint
        made = content.get("made_with", {key: content[key] for key in ("versions", "machine") if key in content})
        results.append(Result(path, kind, of, numbers, lines, made, content.get("reason", "")))
    order = [*COMMANDS, *(result.kind for result in results)]
    return sorted(results, key=lambda result: (not result.own, order.index(result.kind)))


def introduce(card: Card, subject: Subject, config: configs.Config, meta: dict[str, Any]) -> None:
    """What it is."""
    model = subject.model
    shape = "x".join(map(str, model.shape))
    parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(model.params))
    which = {"ema": "the moving average of the parameters", "raw": "the parameters themselves"}[model.weights]
    card.add(
        f"# {plain(model.workdir.resolve().name)}",
        f"A denoising diffusion model of images {shape} of {model.levels} levels: a U-Net of "
        f"{parameters:,} parameters that predicts {config.loss.predicts}, with {config.schedule.T} steps of noise.",
    )
    rows = [
        ("checkpoint", f"step {model.step} of {config.steps}"),
        ("weights", f"{which}, {model.fingerprint}"),
        ("parameters", f"{parameters:,}, computed in {config.net.dtype}"),
        *((("trained with", said(meta["versions"])),) if meta.get("versions") else ()),
    ]
    try:
        loaded = images(subject)
        rows.append(("data", data.summary(loaded)))
        for name, side in (("training images", loaded.train), ("held-out images", loaded.test)):
            rows.append((name, f"{len(side):,}, sha {protocol.data_hash(side)}"))
    except FileNotFoundError as error:
        card.missing.append(f"not there: the data, so that their number and hashes are not said: {error}")
        rows.append(("data", config.data.source))
    card.table(("", ""), rows)


def settings(card: Card, config: configs.Config) -> None:
    """The config: what is not a default, and all of it."""
    card.add("## Config")
    changed = [line.partition(": ") for line in configs.differences(configs.Config(), config)]
    rows = [(field, *values.partition(" -> ")[::2]) for field, _, values in changed]
    if rows:
        card.table(("field", "default", "here"), [(f"`{field}`", old, new) for field, old, new in rows])
    else:
        card.add("Every field has its default.")
    card.add(f"<details><summary>All fields</summary>\n\n{fenced('json', configs.to_json(config))}\n\n</details>")


def training(card: Card, subject: Subject, config: configs.Config) -> None:
    """Curves, where training ended, and its newest samples."""
    workdir = subject.model.workdir
    card.add("## Training")
    path = workdir / "metrics.jsonl"
    rows = log.read(path) if path.exists() else []
    if rows:
        card.table(("", ""), summary(rows))
        try:
            plots.panels(card.home / "report" / "training.png", plots.training(rows))
            caption = "Training curves: means over the steps between two lines of metrics.jsonl."
            card.picture(card.home / "report" / "training.png", caption)
        except plots.MissingExtra as missing:
            card.missing.append(f"not drawn: training curves: {missing}")
    else:
        card.missing.append("not there: losses of training: RUN/metrics.jsonl is missing or empty")
    grids = sorted(workdir.glob("samples/*.png"), key=lambda grid: int(grid.stem) if grid.stem.isdigit() else -1)
    if grids:
        newest = grids[-1]
        caption = f"Samples: drawn by training after step {newest.stem}, seed {config.seed}, not chosen."
        card.picture(newest, caption)
    else:
        card.missing.append(
            "not there: samples from training: `python sample.py RUN --num 64 --seed 0 --out samples` draws some"
        )


def summary(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Where training is: name and value."""
    shown = [("last line of metrics", f"step {rows[-1].get('step')}")]
    losses = [row for row in rows if row.get("loss") is not None]
    if losses:
        shown.append(("training loss", f"{losses[-1]['loss']:.4f} at step {losses[-1]['step']}"))
        speed = float(np.median([row["images_per_s"] for row in losses]))
        shown.append(("speed", f"{speed:.3g} images/s, median over the lines of metrics"))
    shown.append(("steps skipped", str(sum(row.get("skipped", 0) for row in rows))))
    held = [row for row in rows if row.get("held_out_bits_per_dim") is not None]
    if held:
        last = held[-1]
        error = last["held_out_bits_per_dim_se"]  # None of one image
        bits = protocol.said(last["held_out_bits_per_dim"], math.nan if error is None else error)
        shown.append(("held-out bits/dim", f"{bits}, estimated bound at step {last['step']}"))
        shown.append(("held-out loss", f"{last['held_out_loss']:.4f} at step {last['step']}"))
    return shown


def measurements(card: Card, results: Sequence[Result]) -> None:
    """Every number: a table to read, and under it for each file the protocols and what they were made with."""
    card.add("## Numbers")
    some = [result for result in results if result.lines]
    if not some:
        card.add("None measured yet; see what is missing below.")
        return
    card.add("Numbers whose protocols, the lines below the table, differ in a field are different measurements.")
    rows = []
    for result in some:
        of = "these" if result.own else "others"
        for number in result.numbers:
            t = f", t = {number.protocol['t']}" if "t" in number.protocol else ""
            value = protocol.said(number.value, number.error)
            rows.append((number.name + t, value, number.protocol.get("n", ""), of, result.path.name))
    if rows:
        card.table(("number", "value ± standard error", "n", "weights", "file"), rows)
    for result in some:
        table = result.path.with_suffix(".md")
        if result.kind in ("table", "calls", "rate_distortion") and table.exists():
            card.add(
                f"{COMMANDS[result.kind].capitalize()}, {result.path.name}:",
                table.read_text(encoding="utf-8").split("\n\n")[0],
            )
    for result in some:
        lines = "\n".join(result.lines)
        summary = f"<summary>{plain(result.path.name)}: {COMMANDS.get(result.kind, plain(result.kind))}</summary>"
        verdict = [f"Verdict: {plain(result.verdict)}"] if result.verdict else []
        made = f"Made with {plain(said(result.made_with)) or 'nothing that it says'}"
        card.add("\n\n".join([f"<details>{summary}", fenced("text", lines + "\n"), *verdict, made, "</details>"]))


def pictures(card: Card, subject: Subject, results: Sequence[Result]) -> None:
    """Every picture of the evaluation, in the order of the results."""
    paths = sorted(path for path in subject.out.glob("*.*") if path.suffix in (".png", ".gif"))
    owned = [(result, path) for result in results for path in paths if path.stem.startswith(result.path.stem)]
    if paths:
        card.add("## Pictures")
    for result, path in owned:
        legend = data.read_png(path).text.get("legend") if path.suffix == ".png" else "animation"
        of = "" if result.own else " (of other weights)"
        verdict = f"; {result.verdict}" if result.verdict else ""
        title = COMMANDS.get(result.kind, result.kind).capitalize()
        card.picture(path, f"{title}{of}: {legend or path.stem}{verdict}")
    for path in sorted(set(paths) - {path for _, path in owned}):
        card.picture(path, f"{path.name}: no file says which weights it is of")


def limits(card: Card, subject: Subject, config: configs.Config, results: Sequence[Result]) -> None:
    """What these numbers do not say, as far as the files tell."""
    lines = ["bits/dim are a variational bound: the likelihood itself is at least as good, by an unknown amount."]
    if subject.model.step < config.steps:
        lines.append(
            f"the checkpoint is from step {subject.model.step}, before the {config.steps} steps of the config."
        )
    facts = [number.protocol for result in results for number in result.numbers]
    if any("estimate" in str(f.get("method", "")) for f in facts):
        lines.append("an estimated bound varies with its sampled times as with the images; its ± covers both.")
    counts = sorted({n for f in facts if isinstance(n := f.get("n"), int)})
    if counts and counts[0] < samples.ENOUGH:
        lines.append(
            f"some numbers rest on {counts[0]:,} images: Fréchet distances of fewer than {samples.ENOUGH:,} are too "
            "large by a bias of their own, and shares and quantiles are as coarse as so few allow."
        )
    if any("classifier" in str(f.get("features", "")) for f in facts):
        lines.append("Fréchet distances through the classifier's features are not FID: no published number compares.")
    lines.append(
        f"numbers are comparable with others on these very images only "
        f"({'x'.join(map(str, subject.model.shape[:-1]))}, {subject.model.levels} levels, by the hash in the protocol)"
        + (": the digits are a small data set, no benchmark." if config.data.source == "digits" else ".")
    )
    lines.append("each number is of one training run: how much another seed of training would change it is not known.")
    card.add("## Limits", "\n".join(f"- {line}" for line in lines))


def reproduce(card: Card, subject: Subject) -> None:
    """The commands."""
    kinds = "\n".join(command(subject, kind) for kind in [*COMMANDS, "report"])
    card.add(
        "## How to reproduce",
        "RUN is the run's folder, and a config file with the fields above trains it again.  The commands have their "
        "defaults; where a protocol says otherwise (n, seed, sampler and the like), flags do too: see --help.",
        f"```\npython train.py CONFIG.py --workdir RUN\n{kinds}\n```",
    )


def plain(text: str) -> str:
    """A text that stays what it is in Markdown: no HTML, nothing that moves a cursor, no new lines."""
    return html.escape(survey.shown(text), quote=False)


def fenced(language: str, text: str) -> str:
    """A text that ends with a new line as a block of code, whatever marks are in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{fence}"


def said(facts: Any) -> str:
    """Nested facts on a line: "versions: ddpm_jax 0.1, jax 0.10"."""
    if not isinstance(facts, dict):
        return str(facts)
    inner = any(isinstance(value, dict) for value in facts.values())
    return ("; " if inner else ", ").join(
        f"{name}: {said(v)}" if isinstance(v, dict) else f"{name} {v}" for name, v in facts.items()
    )
