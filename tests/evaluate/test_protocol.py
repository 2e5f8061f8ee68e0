"""Measurement protocols: their lines, values and files."""

import numpy as np
import pytest

from ddpm_jax.evaluate import likelihood as evaluated
from ddpm_jax.evaluate import protocol
from ddpm_jax.pipeline import image_parts, manifest


def test_every_field_of_a_protocol_is_in_its_line():
    fields = {"n": 3, "data": "a", "clip": True, "mix": 0.5, "method": "exact", "anything": "else"}
    base = protocol.Measurement("bits/dim", 3.75, 0.01, fields)
    assert protocol.format_line(base) == "bits/dim 3.750 ± 0.010 | n=3 | a | clip | mix=0.5 | exact | anything=else"
    for name, value in fields.items():
        other = {**fields, name: not value if isinstance(value, bool) else value * 2}
        assert protocol.format_line(base._replace(protocol=other)) != protocol.format_line(base)
        assert manifest.short_hash(other) != manifest.short_hash(fields)
    close = {**fields, "mix": 0.5000000001}  # digits that a shorter form would drop
    assert protocol.format_line(base._replace(protocol=close)) != protocol.format_line(base)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.75, 0.0123, "3.750 ± 0.012"),
        (0.5, float("nan"), "0.5"),
        (123.456, 12.0, "123 ± 12"),
        (1.7e-7, 7.1e-8, "1.7e-07 ± 7e-08"),
        (7e-9, 0, "7e-09"),
    ],
)
def test_a_value_has_the_digits_that_its_error_leaves(value, error, text):
    assert protocol.format_value(value, error) == text


def test_damaged_measurements_and_samples_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", total=np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.npz holds total, which is no bound: remove it"):
        evaluated.load(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=r"a\.npz is not an \.npz file, or damaged \(.*\): remove it, and its content"):
        evaluated.load(tmp_path / "a.npz")
    image_parts.write_part(tmp_path, 0, np.zeros((4, 2, 2, 1), np.uint8))
    (path,) = tmp_path.glob("*.npy")
    np.save(path, np.zeros((3, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match=r"00000004\.npy holds \(3, 2, 2, 1\), not 4 images: remove it"):
        list(image_parts.read_chunks(tmp_path, 0, 4))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00000004\.npy is damaged: remove it, and its images are drawn again"):
        list(image_parts.read_chunks(tmp_path, 0, 4))
