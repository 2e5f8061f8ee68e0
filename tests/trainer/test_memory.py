"""Hints for what does not fit: each is a flag that training takes, and that needs less memory."""

import dataclasses
import itertools

import pytest

from ddpm_jax import config as configs
from ddpm_jax import trainer


@pytest.mark.parametrize(("batch", "accumulate"), [(6, 2), (8, 4), (12, 4), (8, 8), (7, 1), (1, 1)])
def test_a_smaller_batch_is_cut_into_as_many_micro_batches_of_fewer_images(batch, accumulate):
    optim = dataclasses.replace(configs.Config().optim, accumulate=accumulate)
    for devices, room in itertools.product((1, 2), (0.1, 0.3, 0.5, 0.99)):
        config = configs.Config(batch=batch * devices, optim=optim)
        hints = trainer.step_oom_hints(config, devices, 0, room)
        proposed = [int(hint.split()[1].rstrip(":")) for hint in hints if hint.startswith("--batch ")]
        assert len(proposed) == (batch > accumulate)
        for smaller in proposed:
            assert smaller % (devices * accumulate) == 0 and 0 < smaller < config.batch
            assert f"--batch {smaller}: {smaller // devices} on each device, which is another run" in hints
