"""The evaluation context: images that cannot be compared are refused."""

import numpy as np
import pytest
import shared_evaluation

from ddpm_jax.evaluate.context import load_images


def test_images_of_another_kind_are_refused(run_folder, tmp_path):
    np.savez(tmp_path / "other.npz", train=np.zeros((9, 8, 8, 3), np.uint8), test=np.zeros((9, 8, 8, 3), np.uint8))
    run = shared_evaluation.evaluation_context(run_folder, source=f"npz:{tmp_path / 'other.npz'}")
    with pytest.raises(ValueError, match=r"images 8x8x3 of 256 levels, but .* makes images 8x8x1 of 17 levels"):
        load_images(run)
