"""Images that are drawn in parts: what several processes must agree on, and whose parts count."""

import numpy as np
import pytest

from ddpm_jax import process
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


def test_all_processes_go_on_where_the_first_does(tmp_path, monkeypatch):
    starts = []

    def draw_from(start):
        starts.append(start)
        yield np.zeros((8 - start, 2, 2, 1), np.uint8)

    monkeypatch.setattr(process, "is_main_process", lambda: False)
    monkeypatch.setattr(process, "broadcast", lambda mine: np.full_like(mine, 6))
    assert image_parts.complete_parts(tmp_path, 8, draw_from)
    assert starts == [6] and not list(tmp_path.iterdir())
