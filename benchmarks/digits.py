"""Are they digits, are all ten there, and are they new?  A classifier's opinion of a run's samples.

    python -m benchmarks.digits runs/digits

A classifier trained on the real training images looks at the run's samples and at the held-out images: how often it is
sure, and of what.  And each sample's distance to the nearest training image is held against the held-out images' own:
a model that copies would be nearer.  Needs scikit-learn (the extra `dev`).
"""

import sys
from typing import NamedTuple

import numpy as np

from ddpm_jax import data, process


class Opinion(NamedTuple):
    """What a classifier and the nearest training image say of some images.

    Attributes:
        sure: share of images that the classifier gives one class with a probability above 0.9.
        counts: [10] images by class.
        distances: [n] root mean square distance to the nearest training image, in levels.
    """

    sure: float
    counts: np.ndarray
    distances: np.ndarray


def judge(images: data.Images, candidates: np.ndarray) -> Opinion:
    """A classifier's opinion of candidates [n, 8, 8, 1], integers 0 .. 16."""
    from sklearn.neural_network import MLPClassifier

    train, seen = _flat(images.train), _flat(candidates)
    classifier = MLPClassifier((128,), alpha=0.1, max_iter=400, random_state=0)
    classifier.fit(train / 16, images.train_labels)
    probability = classifier.predict_proba(seen / 16)
    squared = (seen**2).sum(1)[:, None] - 2 * seen @ train.T + (train**2).sum(1)
    nearest = np.sqrt(np.maximum(squared.min(1), 0) / train.shape[1])
    counts = np.bincount(probability.argmax(1), minlength=10)
    return Opinion(float((probability.max(1) > 0.9).mean()), counts, nearest)


def main(argv: list[str]) -> int:
    """Prints both opinions side by side."""
    (workdir,) = argv
    process.prepare()
    from ddpm_jax import runs

    images, samples = data.load("digits"), samples_of(runs.Model(workdir, step=None, weights="ema", sampling={}))
    print(f"{'':22}{'sure':>6}  {'nearest training image, in levels':>36}   by class")
    for name, candidates in (("held-out images", images.test), (f"{len(samples)} samples", samples)):
        opinion = judge(images, candidates)
        low, mid, high = np.quantile(opinion.distances, [0.05, 0.5, 0.95])
        spread = f"5 %: {low:.2f}, median {mid:.2f}, 95 %: {high:.2f}"
        print(f"{name:22}{opinion.sure:6.1%}  {spread:>36}   {opinion.counts.tolist()}")
    return 0


def samples_of(model, num: int = 256, seed: int = 0) -> np.ndarray:
    """The first images of a seed, as integers."""
    parts = [part.x for part in model.draw(seed=seed, start=0, num=num)]
    return data.to_integer(np.concatenate(parts), model.levels)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
