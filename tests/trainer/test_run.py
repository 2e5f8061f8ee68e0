"""What a run says of itself while it trains."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_run

from ddpm_jax import config as configs
from ddpm_jax import data, trainer
from ddpm_jax.keys import from_seed
from ddpm_jax.metrics import monitors
from ddpm_jax.model import build
from ddpm_jax.process import distributed


@pytest.mark.parametrize(("flip", "copied"), [(True, 1), (False, 0)])
def test_mirrored_training_images_are_copies_where_training_mirrors(flip, copied, tmp_path):
    config = dataclasses.replace(tiny_run.CONFIG, data=configs.Data(flip=flip))
    images = data.load("digits")
    run = trainer.Run(build(config, (8, 8, 1), images.levels), tmp_path, images, from_seed(0), None)
    report = monitors.report(np.ascontiguousarray(images.train[:40, :, ::-1]), run.reference)
    assert report.memorisation.copied == pytest.approx(
        copied, abs=0.2
    )  # a few digits are their own mirror image, nearly


def test_processes_with_other_labels_or_parameters_are_refused(tmp_path, monkeypatch):
    """The images alone do not say it, and a new run has no checkpoint that would."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    config = dataclasses.replace(tiny_run.CONFIG, net=dataclasses.replace(tiny_run.CONFIG.net, num_classes=10))
    images, gathered = data.load("digits"), []

    def check(images, params):
        run = trainer.Run(build(config, (8, 8, 1), images.levels), tmp_path, images, from_seed(0), None)
        run.check_consistent({}, params)

    def allgather(mine):  # process 0 is the first call's
        gathered.append(mine)
        return np.stack([gathered[0], mine])

    monkeypatch.setattr(distributed, "_is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_allgather", allgather)
    params = {"w": np.ones(3, np.float32)}
    check(images, params)
    check(images, params)
    assert len(gathered) == 2
    with pytest.raises(ValueError, match="the same images, labels and texts: it differs in process 1"):
        check(images._replace(train_labels=np.roll(images.train_labels, 1)), params)
    with pytest.raises(ValueError, match=r"the same parameters \(--init-from\): it differs in process 1"):
        check(images, {"w": np.zeros(3, np.float32)})
