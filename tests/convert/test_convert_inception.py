"""The weights of Inception from a file of tensors; tests/metrics/test_inception.py computes with them."""

import numpy as np
import pytest

from ddpm_jax.convert import inception, tensor_files


def test_files_of_other_networks_are_refused_by_their_tensors(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.touch()
    monkeypatch.setattr(tensor_files, "read_tensors", lambda path: {"fc.bias": np.zeros(9), "head.weight": np.zeros(9)})
    with pytest.raises(ValueError, match=r"w\.pth: these are not torch-fidelity's weights of Inception-v3") as raised:
        inception.read_weights(path)
    message = str(raised.value)
    assert " tensors are missing: Conv2d_1a_3x3.bn.running_mean (32,); Conv2d_1a_3x3.bn.running_var (32,)" in message
    assert len(message) < 800


def test_a_missing_file_is_named_with_its_address(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no Inception weights .*w\.pth: download https://.*6726825d\.pth \("):
        inception.read_weights(tmp_path / "w.pth")
