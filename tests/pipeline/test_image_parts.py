"""Images that are drawn in parts: what several processes must agree on, and whose parts count."""

import numpy as np
import pytest

from ddpm_jax.pipeline import image_parts
from ddpm_jax.process import distributed

MADE = {"fingerprint": "sha256:0", "seed": 0, "num": 4}


def test_processes_with_other_weights_or_flags_are_refused(tmp_path, monkeypatch):
    """Each draws the tiles of its own devices: half of the images would be another call's."""
    digests = []
    monkeypatch.setattr(distributed, "_is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_allgather", lambda mine: (digests.append(mine), np.stack([mine, mine + 1]))[1])
    for change, batch in (({}, None), ({"fingerprint": "sha256:1"}, None), ({"seed": 1}, None), ({}, 8)):
        with pytest.raises(ValueError, match="the same weights, flags and files: it differs in process 1"):
            image_parts.draw_parts(tmp_path / "parts", None, MADE | change, seed=0, start=0, num=4, batch=batch)
    assert len({digest.tobytes() for digest in digests}) == 4
    assert not (tmp_path / "parts").exists()
