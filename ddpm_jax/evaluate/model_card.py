"""A run's model card: config, training curves, measurements, figures, limits, and missing results."""

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

from ddpm_jax import checkpoint, data, tracking
from ddpm_jax import config as configs
from ddpm_jax.data import folder_report
from ddpm_jax.evaluate import plots, protocol, samples
from ddpm_jax.evaluate.context import EvaluationContext, load_images
from ddpm_jax.evaluate.options import ReportOptions

COMMANDS = {
    "likelihood": "bits/dim of the held-out images",
    "samples": "Fréchet distance, precision and recall, density and coverage",
    "table": "comparison of samplers",
    "nfe": "sample quality against function evaluations",
    "ema": "sample quality by length of the average",
    "rate_distortion": "rate and distortion along the reverse process",
    "progressive": "reverse process, x_t over time",
    "predictions": "predicted x_0 over time",
    "stochastic": "images that share an x_t",
    "interpolation": "interpolation between two images",
    "neighbours": "nearest training images",
}
"""The evaluation commands, which begin the names of their files, and their titles."""

FORMER_COMMANDS = {"calls": "nfe"}
"""Commands whose files from before they were renamed are still read: former name -> name."""


class ResultFile(NamedTuple):
    """A JSON file of the evaluation."""

    path: pathlib.Path
    kind: str  # the command that wrote it
    same_weights: bool  # whether it is of the same weights as the model card
    measurements: list[protocol.Measurement]
    lines: list[str]  # the numbers and their protocols, one to a line; of a table, all its numbers
    made_with: dict[str, Any]  # versions and machine
    verdict: str  # of the memorisation check; empty if the file has none


class ModelCard:
    """A model card under construction: Markdown paragraphs, whose links are relative to a folder.

    `missing` has a line for each missing result, with the reason.
    """

    def __init__(self, home: pathlib.Path):
        self.folder, self.parts, self.missing = home.resolve(), [], []
        (self.folder / "report").mkdir(parents=True, exist_ok=True)

    def add(self, *parts: str) -> None:
        """Adds Markdown paragraphs, tables or headings."""
        self.parts.extend(parts)

    def add_table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds a table."""
        cells = [[escape_markdown(str(cell)).replace("|", "\\|") for cell in row] for row in [head, *rows]]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        self.add("\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]))

    def add_image(self, path: pathlib.Path, caption: str) -> None:
        """Adds a picture with its caption; copied into the folder if it lies elsewhere."""
        path = path.resolve()
        if not path.is_relative_to(self.folder):
            path = pathlib.Path(shutil.copy(path, self.folder / "report" / f"{path.parent.name}-{path.name}"))
        link = urllib.parse.quote(path.relative_to(self.folder).as_posix())
        self.add(f"![{escape_markdown(caption.partition(':')[0])}]({link})", escape_markdown(caption))


def run(context: EvaluationContext, options: ReportOptions) -> None:
    """Writes report.md; prints its path and the missing results."""
    home = context.out if context.flags.out else context.model.workdir
    card, results = ModelCard(home), find_results(context)
    with checkpoint.Checkpoints(context.model.workdir / "checkpoints", read_only=True) as saved:
        meta = saved.meta(context.model.step)
    config = configs.from_dict(meta["config"])
    add_summary(card, context, config, meta)
    add_config(card, config)
    add_training(card, context, config)
    add_measurements(card, results)
    add_images(card, context, results)
    commands = {kind: what for kind, what in COMMANDS.items() if kind != "ema" or config.optim.ema_lengths}
    for kind, what in commands.items():
        if not any(result.same_weights and result.kind == kind for result in results):
            card.missing.append(f"not measured: {what} of these weights: `{command_line(context, kind)}`")
    lines = "\n".join(f"- {escape_markdown(line)}" for line in card.missing)
    card.add("## What is missing", lines or "Nothing: every command has been run on these weights.")
    add_limitations(card, context, config, results)
    lines = "\n".join(command_line(context, kind) for kind in [*commands, "report"])
    card.add(
        "## How to reproduce",
        "RUN is the run's folder, and a config file with the fields above trains it again.  The commands have their "
        "defaults; where a protocol differs (n, seed, sampler and the like), give the flags: see --help.",
        f"```\nddpm-jax train CONFIG.py --workdir RUN\n{lines}\n```",
    )
    (home / "report.md").write_text("\n\n".join(card.parts) + "\n", encoding="utf-8")
    count = sum(len(result.lines) for result in results)
    print(f"{home / 'report.md'}: {count} numbers from {len(results)} files of {context.out}")
    for line in card.missing:
        print(f"  {line}")


def command_line(context: EvaluationContext, kind: str) -> str:
    """The command line of an evaluation, with RUN for the run's folder."""
    which = context.flags.model
    flags = [f"--checkpoint {context.model.step}"] if which.checkpoint is not None else []
    flags += [f"--weights {which.weights}"] if which.weights != "ema" else []
    return " ".join(["ddpm-jax evaluate RUN", kind, *flags])


def find_results(context: EvaluationContext) -> list[ResultFile]:
    """The JSON files of the results folder: those of these weights first, in the order of the commands."""
    results, own = [], f"ckpt={context.weights_fields()['ckpt']}"
    for path in sorted(context.out.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}): remove it") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no result, but {str(content)[:60]}: remove it")
        kind = path.stem.partition("-")[0]
        kind = FORMER_COMMANDS.get(kind, kind)
        numbers = protocol.read_measurements(path) if "numbers" in content else []
        lines = [protocol.format_line(number) for number in numbers]
        if kind in ("table", "nfe", "ema"):
            if not isinstance(content.get("rows"), dict):
                raise ValueError(f"{path} is damaged (it has no rows): remove it")
            lines += [line for row in content["rows"].values() for line in row]
        if kind not in COMMANDS and not lines:
            print(f"left out: {path} holds no numbers")
            continue
        # pictures without numbers have a manifest, with versions and machine at its top
        of = any(own in line for line in lines) or content.get("fingerprint") == context.model.fingerprint
        made = content.get("made_with", {key: content[key] for key in ("versions", "machine") if key in content})
        results.append(ResultFile(path, kind, of, numbers, lines, made, content.get("reason", "")))
    order = [*COMMANDS, *(result.kind for result in results)]
    return sorted(results, key=lambda result: (not result.same_weights, order.index(result.kind)))


def add_summary(card: ModelCard, context: EvaluationContext, config: configs.Config, meta: dict[str, Any]) -> None:
    """Adds title, checkpoint, weights and data."""
    model = context.model
    shape = "x".join(map(str, model.shape))
    parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(model.params))
    names = {"ema": "the moving average of the parameters", "raw": "the raw parameters"}
    network = {"unet": "a U-Net", "patch_transformer": "a patch transformer"}[config.net.kind]
    which = names.get(model.weights, f"the average {model.weights} of the parameters (post-hoc EMA)")
    card.add(
        f"# {escape_markdown(model.workdir.resolve().name)}",
        f"A denoising diffusion model of images {shape} of {model.levels} levels: {network} of "
        f"{parameters:,} parameters that predicts {config.loss.predicts}, with {config.schedule.T} steps of noise.",
    )
    rows = [
        ("checkpoint", f"step {model.step} of {config.steps}"),
        ("weights", f"{which}, {model.fingerprint}"),
        ("parameters", f"{parameters:,}, computed in {config.net.dtype}"),
        *((("trained with", format_nested(meta["versions"])),) if meta.get("versions") else ()),
    ]
    try:
        loaded = load_images(context)
        rows.append(("data", data.summary(loaded)))
        for name, side in (("training images", loaded.train), ("held-out images", loaded.test)):
            rows.append((name, f"{len(side):,}, sha {protocol.data_hash(side)}"))
    except FileNotFoundError as error:
        card.missing.append(f"not there: the data, so their number and hashes are missing: {error}")
        rows.append(("data", config.data.source))
    card.add_table(("", ""), rows)


def add_config(card: ModelCard, config: configs.Config) -> None:
    """Adds the fields that differ from their defaults, and all fields."""
    card.add("## Config")
    changed = [line.partition(": ") for line in configs.differences(configs.Config(), config)]
    rows = [(f"`{field}`", *values.partition(" -> ")[::2]) for field, _, values in changed]
    if rows:
        card.add_table(("field", "default", "here"), rows)
    else:
        card.add("Every field has its default.")
    card.add(f"<details><summary>All fields</summary>\n\n{code_block('json', configs.to_json(config))}\n\n</details>")


def add_training(card: ModelCard, context: EvaluationContext, config: configs.Config) -> None:
    """Adds training curves, the last metrics, and the newest samples of training."""
    workdir = context.model.workdir
    card.add("## Training")
    path = workdir / "metrics.jsonl"
    rows = tracking.read_metrics(path) if path.exists() else []
    if panels := plots.training_panels(rows):
        card.add_table(("", ""), training_summary(rows))
        try:
            plots.write_panels(card.folder / "report" / "training.png", panels)
            caption = "Training curves: means over the steps between two lines of metrics.jsonl."
            card.add_image(card.folder / "report" / "training.png", caption)
        except plots.MissingExtra as missing:
            card.missing.append(f"not drawn: training curves: {missing}")
    else:
        card.missing.append("not there: losses of training: RUN/metrics.jsonl is missing or has none")
    grids = sorted(workdir.glob("samples/*.png"), key=lambda grid: int(grid.stem) if grid.stem.isdigit() else -1)
    if grids:
        newest = grids[-1]
        caption = f"Samples: drawn by training after step {newest.stem}, seed {config.seed}, not chosen."
        card.add_image(newest, caption)
    else:
        card.missing.append(
            "not there: samples from training: `ddpm-jax sample RUN --num 64 --seed 0 --out samples` draws some"
        )


def training_summary(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Rows of name and value: last losses, speed, skipped steps, held-out bits/dim."""
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
        bits = protocol.format_value(last["held_out_bits_per_dim"], math.nan if error is None else error)
        shown.append(("held-out bits/dim", f"{bits}, estimated bound at step {last['step']}"))
        shown.append(("held-out loss", f"{last['held_out_loss']:.4f} at step {last['step']}"))
    return shown


def add_measurements(card: ModelCard, results: Sequence[ResultFile]) -> None:
    """Adds a table of all numbers, and for each file its protocols, versions and machine."""
    card.add("## Numbers")
    some = [result for result in results if result.lines]
    if not some:
        card.add("None measured yet; see what is missing below.")
        return
    card.add("Numbers whose protocols, the lines below the table, differ in a field are different measurements.")
    rows = []
    for result in some:
        of = "these" if result.same_weights else "others"
        for number in result.measurements:
            t = f", t = {number.protocol['t']}" if "t" in number.protocol else ""
            value = protocol.format_value(number.value, number.error)
            rows.append((number.name + t, value, number.protocol.get("n", ""), of, result.path.name))
    if rows:
        card.add_table(("number", "value ± standard error", "n", "weights", "file"), rows)
    for result in some:
        table = result.path.with_suffix(".md")
        if result.kind in ("table", "nfe", "ema", "rate_distortion") and table.exists():
            content = table.read_text(encoding="utf-8").split("\n\n")[0]
            card.add(f"{COMMANDS[result.kind].capitalize()}, {result.path.name}:", content)
    for result in some:
        lines = "\n".join(result.lines)
        what = COMMANDS.get(result.kind, escape_markdown(result.kind))
        summary = f"<summary>{escape_markdown(result.path.name)}: {what}</summary>"
        verdict = [f"Verdict: {escape_markdown(result.verdict)}"] if result.verdict else []
        made = f"Made with {escape_markdown(format_nested(result.made_with)) or 'unknown versions'}"
        card.add("\n\n".join([f"<details>{summary}", code_block("text", lines + "\n"), *verdict, made, "</details>"]))


def add_images(card: ModelCard, context: EvaluationContext, results: Sequence[ResultFile]) -> None:
    """Adds the pictures of the evaluation, in the order of the results."""
    paths = sorted(path for path in context.out.glob("*.*") if path.suffix in (".png", ".gif"))
    owned = [(result, path) for result in results for path in paths if path.stem.startswith(result.path.stem)]
    if paths:
        card.add("## Pictures")
    for result, path in owned:
        legend = data.read_png(path).text.get("legend") if path.suffix == ".png" else "animation"
        of = "" if result.same_weights else " (of other weights)"
        verdict = f"; {result.verdict}" if result.verdict else ""
        title = COMMANDS.get(result.kind, result.kind).capitalize()
        card.add_image(path, f"{title}{of}: {legend or path.stem}{verdict}")
    for path in sorted(set(paths) - {path for _, path in owned}):
        card.add_image(path, f"{path.name}: of unknown weights")


def add_limitations(
    card: ModelCard, context: EvaluationContext, config: configs.Config, results: Sequence[ResultFile]
) -> None:
    """Adds the limits of the measurements in these files."""
    lines = ["bits/dim are a variational bound: the likelihood itself is at least as good, by an unknown amount."]
    if context.model.step < config.steps:
        lines.append(
            f"the checkpoint is from step {context.model.step}, before the {config.steps} steps of the config."
        )
    fields = [number.protocol for result in results for number in result.measurements]
    if any("estimate" in str(f.get("method", "")) for f in fields):
        lines.append("an estimated bound varies with its sampled times as with the images; its ± covers both.")
    counts = sorted({n for f in fields if isinstance(n := f.get("n"), int)})
    if counts and counts[0] < samples.RECOMMENDED_NUM:
        lines.append(
            f"some numbers rest on {counts[0]:,} images: Fréchet distances of fewer than {samples.RECOMMENDED_NUM:,} "
            "are too large by a bias of their own, and shares and quantiles are as coarse as so few allow."
        )
    if any("classifier" in str(f.get("features", "")) for f in fields):
        lines.append("Fréchet distances through the classifier's features are not FID: no published number compares.")
    lines.append(
        f"numbers are comparable with others on these very images only "
        f"({'x'.join(map(str, context.model.shape[:-1]))}, {context.model.levels} levels, by the hash in the protocol)"
        + (": the digits are a small data set, no benchmark." if config.data.source == "digits" else ".")
    )
    lines.append("each number is of one training run: its variance over training seeds is not known.")
    card.add("## Limits", "\n".join(f"- {line}" for line in lines))


def escape_markdown(text: str) -> str:
    """The text as one line of Markdown, without HTML and control characters."""
    return html.escape(folder_report.printable(text), quote=False)


def code_block(language: str, text: str) -> str:
    """A Markdown code block of a text that ends with a new line, whatever backticks are in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{fence}"


def format_nested(fields: Any) -> str:
    """Nested fields on one line: "versions: ddpm_jax 0.1, jax 0.10"."""
    if not isinstance(fields, dict):
        return str(fields)
    inner = any(isinstance(value, dict) for value in fields.values())
    return ("; " if inner else ", ").join(
        f"{name}: {format_nested(v)}" if isinstance(v, dict) else f"{name} {v}" for name, v in fields.items()
    )
