"""The sample cache: interrupted and continued drawing, formats, and protocol fields."""

import dataclasses
import os
import signal

import numpy as np
import pytest
from shared_evaluation import ddim_context

from ddpm_jax import tracking
from ddpm_jax.evaluate import protocol, sample_cache, samples
from ddpm_jax.evaluate.context import Interrupted
from ddpm_jax.evaluate.samples import SamplesOptions
from ddpm_jax.pipeline import image_parts, manifest
from ddpm_jax.process import distributed


def lines_of(found):
    return [protocol.format_line(number) for number in found]


def test_an_interrupted_drawing_goes_on_to_the_same_samples(run_folder, drawn, tmp_path, monkeypatch, capsys):
    options = SamplesOptions(num=100, seed=3)
    expected = samples.measure_and_write(drawn, options)
    run, update = ddim_context(run_folder, tmp_path), tracking.Progress.update
    monkeypatch.setattr(tracking.Progress, "update", lambda *args: (os.kill(os.getpid(), signal.SIGINT), update(*args)))
    with pytest.raises(Interrupted):
        samples.run(run, options)
    assert "interrupted: 8 of 100 images are kept" in capsys.readouterr().out
    monkeypatch.undo()
    assert lines_of(samples.measure_and_write(run, options)) == lines_of(expected)


def test_more_samples_are_drawn_on(run_folder, tmp_path):
    run = ddim_context(run_folder, tmp_path)
    cache_folder = sample_cache.ensure_samples(run, 10, 0, "float")
    before = np.concatenate(list(image_parts.read_chunks(cache_folder, 0, 10)))
    assert sample_cache.ensure_samples(run, 25, 0, "float") == cache_folder
    assert [stop for _, stop, _ in image_parts.list_parts(cache_folder)] == [10, 25]
    np.testing.assert_array_equal(np.concatenate(list(image_parts.read_chunks(cache_folder, 0, 10))), before)
    assert sum(len(part) for part in image_parts.read_chunks(cache_folder, 4, 21)) == 17
    assert sample_cache.ensure_samples(run, 10, 1, "float") != cache_folder


def test_parts_that_overlap_are_read_once(tmp_path, monkeypatch):
    """After a damaged part was removed, or of two evaluations at a time: all images are there, each once."""
    images = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1)
    monkeypatch.setattr(image_parts, "PART_SIZE", 8)

    def draw_from(done):
        return (images[i : i + 4] for i in range(done, 30, 4))

    assert image_parts.complete_parts(tmp_path, 10, lambda done: iter([images[done:10]]))
    assert image_parts.complete_parts(tmp_path, 30, draw_from)
    stops = [stop for _, stop, _ in image_parts.list_parts(tmp_path)]
    assert stops == [10, 18, 26, 30]
    (tmp_path / "00000000-00000010.npy").unlink()
    assert image_parts.complete_parts(tmp_path, 30, draw_from)
    assert len([*tmp_path.iterdir()]) > len(image_parts.list_parts(tmp_path))
    for start, stop in ((0, 30), (9, 17), (17, 18)):
        read = np.concatenate([*image_parts.read_chunks(tmp_path, start, stop)])
        np.testing.assert_array_equal(read, images[start:stop])
    image_parts.write_part(tmp_path, 0, images[:25])  # by another evaluation, meanwhile
    np.testing.assert_array_equal(np.concatenate([*image_parts.read_chunks(tmp_path, 0, 30)]), images)


def test_floats_are_the_integers_unrounded(run_folder, tmp_path):
    run = ddim_context(run_folder, tmp_path)
    integers, cut, floats = (
        np.concatenate(list(image_parts.read_chunks(sample_cache.ensure_samples(run, 9, 0, form), 0, 9)))
        for form in ("integer", "floor", "float")
    )
    assert integers.dtype == cut.dtype == np.uint8 and floats.dtype == np.float32
    np.testing.assert_array_equal(np.rint(floats), integers)
    near = np.abs(floats - np.rint(floats)) < 1e-5  # where float32 decides
    np.testing.assert_array_equal(np.floor(floats)[~near], cut[~near])
    assert (cut < integers).any()
    assert floats.min() >= 0 and floats.max() <= 16 and (floats != integers).any()


def test_the_rounding_is_in_the_line_and_older_draws_are_found(drawn):
    fields = {form: sample_cache.protocol_fields(drawn, 3, form) for form in ("integer", "floor", "float")}
    assert [found["rounding"] for found in (fields["integer"], fields["floor"])] == ["round", "floor"]
    assert fields["float"]["format"] == "float" and "rounding" not in fields["float"]
    before = {name: value for name, value in fields["integer"].items() if name != "rounding"}
    folder = sample_cache.ensure_samples(drawn, 2, 3, "integer")
    assert folder is not None and folder.name == manifest.short_hash({**before, "tile": drawn.model.tile})


def test_changing_any_field_changes_the_line(run_folder, drawn, tmp_path):
    def line(run, **options):
        options = dataclasses.asdict(SamplesOptions()) | {"num": 80} | options
        fields = sample_cache.protocol_fields(run, options["seed"], options["format"])
        return protocol.format_line(
            protocol.Measurement("x", 1.0, 0.1, {"n": options["num"], "sets": options["sets"], **fields})
        )

    lines = [
        line(drawn),
        line(drawn, num=81),
        line(drawn, sets=2),
        line(drawn, seed=1),
        line(drawn, format="float"),
        line(drawn, format="floor"),
        line(ddim_context(run_folder, tmp_path, steps=5)),
        line(ddim_context(run_folder, tmp_path, eta=0.5)),
        line(ddim_context(run_folder, tmp_path, spacing="trailing")),
        line(ddim_context(run_folder, tmp_path, sampler="ancestral")),
        line(ddim_context(run_folder, tmp_path, sampler="ancestral", variance_mix=0.0)),
        line(ddim_context(run_folder, tmp_path, clip=False)),
        line(ddim_context(run_folder, tmp_path, weights="raw")),
    ]
    assert len(set(lines)) == len(lines)


def test_processes_that_draw_other_samples_are_refused(run_folder, tmp_path, monkeypatch):
    run = ddim_context(run_folder, tmp_path)
    monkeypatch.setattr(distributed, "_is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_allgather", lambda mine: np.stack([mine, mine + 1]))
    with pytest.raises(ValueError, match="the same weights and flags: it differs in process 1"):
        sample_cache.ensure_samples(run, 10, 0, "integer")
    assert not (tmp_path / "draws").exists()
