"""What a run says of itself while it trains."""

import dataclasses

import numpy as np
import pytest
import tiny_run

from ddpm_jax import config as configs
from ddpm_jax import data, trainer
from ddpm_jax.keys import from_seed
from ddpm_jax.metrics import monitors
from ddpm_jax.model import build


@pytest.mark.parametrize(("flip", "copied"), [(True, 1), (False, 0)])
def test_mirrored_training_images_are_copies_where_training_mirrors(flip, copied, tmp_path):
    config = dataclasses.replace(tiny_run.CONFIG, data=configs.Data(flip=flip))
    images = data.load("digits")
    run = trainer.Run(build(config, (8, 8, 1), images.levels), tmp_path, images, from_seed(0), None)
    report = monitors.report(np.ascontiguousarray(images.train[:40, :, ::-1]), run.reference)
    assert report.memorisation.copied == pytest.approx(
        copied, abs=0.2
    )  # a few digits are their own mirror image, nearly
