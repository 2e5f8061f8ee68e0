"""Share of samples that show the label, text or scene description they are conditioned on.

    python -m benchmarks.condition_accuracy labels RUN       # of configs/digits.py:labels
    python -m benchmarks.condition_accuracy texts RUN        # of configs/digits.py:text
    python -m benchmarks.condition_accuracy pairs RUN        # of configs/pairs.py
    python -m benchmarks.condition_accuracy scenes RUN       # of configs/scenes.py

Draws equally many samples of each label or text; the classifier of `ddpm_jax.metrics` reads digits,
`benchmarks.attributes` reads scenes.  Results are printed and kept in benchmarks/results/condition_accuracy-KIND.json
with all their settings; a row of the same weights and sampling that is there already is not drawn again.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tyro

from ddpm_jax import process
from ddpm_jax.config import flags

UNSEEN_TEMPLATES = (
    "a photo of a {}", "somebody wrote a {}", "the {} of a child", "draw the digit {} for me", "number {}",
    "in this picture there is a {}", "a small scan of the handwritten digit {}",
)  # fmt: skip
"""Of no config: texts whose strings training has never seen."""

RESULTS = pathlib.Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Arguments:
    kind: tyro.conf.Positional[Literal["labels", "texts", "pairs", "scenes"]]
    """Kind of condition."""
    run: tyro.conf.Positional[str]
    """Its folder."""
    scales: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
    """Of guidance."""
    num: int = 500
    """Samples at each place, of each group."""
    seed: int = 1000
    """Of the samples."""
    sampling: tyro.conf.OmitArgPrefixes[flags.SamplingOptions] = flags.SamplingOptions()
    """Default of each: the config of the run."""


def main(argv: list[str]) -> None:
    """Prints a table and writes it as JSON."""
    from ddpm_jax import pipeline

    args = tyro.cli(Arguments, prog="python -m benchmarks.condition_accuracy", args=argv)
    process.initialize()
    model = pipeline.Pipeline(args.run, step=None, weights="ema", sampling=args.sampling.overrides())
    measure = {"labels": label_accuracy, "texts": text_accuracy, "pairs": pair_accuracy, "scenes": scene_accuracy}[
        args.kind
    ]
    path = RESULTS / f"condition_accuracy-{args.kind}.json"
    made = model.manifest() | {
        "num": args.num,
        "seed": args.seed,
        "command": f"python -m benchmarks.condition_accuracy {args.kind}",
    }
    del made["sampling"], made["times"], made["asked"]
    sampler = {k: v for k, v in dataclasses.asdict(model.config.sampling).items() if k not in ("guidance", "num")}
    before = json.loads(path.read_text()) if path.exists() else {}
    rows = before["rows"] if before.get("made") == made else []
    for scale in args.scales:
        one = {"guidance": scale, "sampling": sampler}
        if not any(row | one == row for row in rows):
            begun = time.perf_counter()
            found = measure(model, args, scale)
            rows.append({**one, "seconds": round(time.perf_counter() - begun, 1), **found})
            rows.sort(key=lambda row: (row["sampling"]["sampler"], row["sampling"]["steps"], row["guidance"]))
            path.write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n")
        print(json.dumps(next(row for row in rows if row | one == row)), flush=True)


def draw_samples(
    model, args: Arguments, scale: float, *, labels: Sequence[int] = (), texts: Sequence[str] = ()
) -> np.ndarray:
    """Samples as the data have them, of the labels or texts in turn."""
    from ddpm_jax import pipeline

    conditioned = model.with_request(pipeline.ConditionRequest(tuple(labels), tuple(texts)), guidance=float(scale))
    return np.concatenate(
        [conditioned.to_pixels(part.x) for part in conditioned.draw(seed=args.seed, start=0, num=args.num)]
    )


def accuracy(right: np.ndarray) -> dict[str, float]:
    """The share that is right, and its standard error."""
    mean = float(np.mean(right))
    return {"right": round(mean, 4), "error": round((mean * (1 - mean) / len(right)) ** 0.5, 4)}


def digit_texts(templates: Sequence[str]) -> tuple[str, ...]:
    """Texts of templates; text i is of digit i mod 10."""
    from ddpm_jax.data import sources

    return tuple(template.format(name) for template in templates for name in sources.DIGIT_NAMES)


def label_accuracy(model, args: Arguments, scale: float) -> dict[str, Any]:
    """Share of samples whose classified digit is the requested label."""
    from ddpm_jax.metrics import classifier

    predictions = classifier.load("digits")(draw_samples(model, args, scale, labels=range(10)))
    right = predictions.probabilities.argmax(1) == np.arange(args.num) % 10
    sure = predictions.probabilities.max(1) > classifier.CONFIDENT
    return accuracy(right) | {"sure": round(float(sure.mean()), 4)}


def text_accuracy(model, args: Arguments, scale: float) -> dict[str, Any]:
    """As `label_accuracy`, of texts from templates in training and of UNSEEN_TEMPLATES."""
    from ddpm_jax.metrics import classifier

    def of(texts: Sequence[str]) -> dict[str, float]:
        predictions = classifier.load("digits")(draw_samples(model, args, scale, texts=texts))
        return accuracy(predictions.probabilities.argmax(1) == np.arange(args.num) % 10)

    known, unseen = digit_texts(model.config.condition.templates), digit_texts(UNSEEN_TEMPLATES)
    assert not set(known) & set(unseen)
    return {"templates of training": of(known), "other templates": of(unseen)}


def pair_accuracy(model, args: Arguments, scale: float) -> dict[str, Any]:
    """Share of samples with both digits of the text, for training pairs and held-out pairs."""
    from benchmarks import attributes
    from ddpm_jax.data import pairs, sources

    every = [pairs.Pair(left, right) for left in range(10) for right in range(10)]

    def of(some: Sequence[pairs.Pair]) -> dict[str, Any]:
        requests = [(text, pair) for way in (0, 1) for pair in some
                 for text in [pairs.descriptions(pair, sources.DIGIT_NAMES)[way]]]  # fmt: skip
        found = attributes.recognise_pairs(draw_samples(model, args, scale, texts=[text for text, _ in requests]))
        expected = [requests[i % len(requests)][1] for i in range(args.num)]
        return {
            "both": accuracy(np.array([one == other for one, other in zip(found, expected, strict=True)])),
            "the other way round": accuracy(
                np.array([one == other[::-1] and one != other for one, other in zip(found, expected, strict=True)])
            ),
        }

    return {
        "pairs of training": of([pair for pair in every if pair not in pairs.HELD_OUT_PAIRS]),
        "held-out pairs": of([pair for pair in every if pair in pairs.HELD_OUT_PAIRS]),
    }


def scene_accuracy(model, args: Arguments, scale: float) -> dict[str, Any]:
    """Shares of correct attributes, for training scenes, both held-out kinds, held-out phrasings and a control.

    The control compares samples with the descriptions of other scenes: the agreement by chance.
    """
    from benchmarks import attributes
    from ddpm_jax.data import scenes

    found = scenes.make_dataset()
    train, test = found.train_captions or (), found.test_captions or ()
    of_kind: dict[str, list[scenes.Scene]] = {"seen": [], "pairing": [], "thing": []}
    for caption in (*train[: args.num], *test):
        scene = attributes.parse_scene(caption.splitlines()[0])
        of_kind[scenes.novelty(scene.first_object[1:], scene.second_object[1:])].append(scene)
    draw = np.random.RandomState(args.seed)

    def group(some: Sequence[scenes.Scene], phrasings: Sequence[str], other: Callable[[int], int]) -> dict[str, Any]:
        some = [some[i % len(some)] for i in range(args.num)]
        candidates = [scenes.descriptions(scene, phrasings) for scene in some]
        selected = [lines[draw.randint(len(lines))] for lines in candidates]
        captions = [selected[other(i)] for i in range(args.num)]
        read = attributes.recognise_scenes(draw_samples(model, args, scale, texts=captions))
        right = attributes.agreement(some, read.scenes)
        return {name: round(float(np.mean(value)), 4) for name, value in right._asdict().items()} | {
            "distance in levels": round(float(np.median(read.distances)), 1)
        }

    def itself(i: int) -> int:
        return i

    return {
        "seen": group(of_kind["seen"], scenes.PHRASINGS, itself),
        "pairings held out": group(of_kind["pairing"], scenes.PHRASINGS, itself),
        "things held out": group(of_kind["thing"], scenes.PHRASINGS, itself),
        "seen, other phrasings": group(of_kind["seen"], scenes.HELD_OUT_PHRASINGS, itself),
        "control: told of others": group(of_kind["seen"], scenes.PHRASINGS, lambda i: (i + 1) % args.num),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
