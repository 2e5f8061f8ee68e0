"""Pictures: exact round trips through [-1, 1], and files that hold what was put into them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data import images

LEVELS = [(17, np.uint8), (256, np.uint8), (65536, np.uint16)]


def ramp(count, height, width, channels, levels=256):
    """Images whose every value tells where it is."""
    values = np.arange(count * height * width * channels) % levels
    return values.reshape(count, height, width, channels).astype(np.uint8)


# Integers and [-1, 1]


@pytest.mark.parametrize(("levels", "dtype"), LEVELS)
def test_every_level_survives_the_round_trip(levels, dtype):
    every = np.arange(levels).astype(dtype)
    x = data.normalize(every, levels)
    assert (x[0], x[-1], x.dtype) == (-1, 1, jnp.float32)
    np.testing.assert_array_equal(x, -x[::-1])  # no level is favoured over its mirror image
    back = data.to_integer(x, levels)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, every)


def test_eight_bits_are_scaled_as_published_weights_expect():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(data.normalize(every, 256), every / 127.5 - 1, rtol=0, atol=2**-23)


@pytest.mark.parametrize(("levels", "dtype"), LEVELS)
def test_compiled_scaling_has_the_same_bits(levels, dtype):
    every = np.arange(levels).astype(dtype)
    compiled = jax.jit(data.normalize, static_argnums=1)(every, levels)
    np.testing.assert_array_equal(compiled, data.normalize(every, levels))


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_the_nearest_level_is_taken(levels):
    x = np.random.RandomState(0).uniform(-1, 1, 4000)
    error = data.normalize(data.to_integer(x, levels), levels) - x
    assert np.abs(error).max() <= 1 / (levels - 1) + 1e-6
    # Truncation would leave a mean error of minus half a level; rounding leaves none.
    standard_error = 2 / (levels - 1) / np.sqrt(12 * x.size)
    assert abs(error.mean()) < 4 * standard_error


def test_what_lies_outside_is_clipped_and_the_input_left_alone():
    x = np.array([-7.0, -1.0001, 1.0001, 99.0], np.float32)
    np.testing.assert_array_equal(data.to_integer(x, 256), [0, 0, 255, 255])
    np.testing.assert_array_equal(x, np.array([-7.0, -1.0001, 1.0001, 99.0], np.float32))


def test_low_precision_images_have_levels_too():
    np.testing.assert_array_equal(data.to_integer(jnp.array([-1, 0.5, 1], jnp.bfloat16), 17), [0, 12, 16])


def test_a_single_value_is_an_image_too():
    assert data.to_integer(jnp.float32(0.5), 17) == data.denormalize(np.float32(0.5), 17) == 12


RANGES = [data.ValueRange(0, 1), data.ValueRange(-3, 7), data.ValueRange(1000, 1000.5), data.ValueRange(-1e-6, 1e6)]


@pytest.mark.parametrize("ends", RANGES)
def test_floats_survive_the_round_trip_to_the_last_digits_of_their_range(ends):
    values = np.random.RandomState(0).uniform(*ends, 4000).astype(np.float32)
    values[:2] = ends
    x = data.normalize(values, ends)
    assert x.dtype == jnp.float32 and jnp.abs(x).max() <= 1 + 2**-22
    np.testing.assert_allclose(x[:2], (-1, 1), rtol=0, atol=2**-22)
    back = data.denormalize(x, ends)
    assert back.dtype == np.float32 and back.min() >= ends.low and back.max() <= ends.high
    np.testing.assert_allclose(back, values, rtol=0, atol=2**-22 * max(map(abs, ends)))
    compiled = jax.jit(data.normalize, static_argnums=1)(values, ends)
    np.testing.assert_array_equal(compiled, x)


def test_floats_outside_are_clipped_to_the_range():
    assert data.denormalize(np.array([-9, -1, 0, 1, 1.001]), data.ValueRange(2, 4)).tolist() == [2, 2, 3, 4, 4]


def test_from_unit_of_levels_is_to_integer():
    x = np.linspace(-1.2, 1.2, 999)
    np.testing.assert_array_equal(data.denormalize(x, 4096), data.to_integer(x, 4096))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: data.normalize(np.zeros(3, np.uint8), data.ValueRange(0, 1)),
            r"normalize: expected float32 images for a range \(0, 1\), got uint8",
        ),
        (
            lambda: data.denormalize(np.array([np.nan, 0]), data.ValueRange(0, 1)),
            "denormalize: 1 of 2 values are non-finite",
        ),
        (
            lambda: data.denormalize(np.zeros(3, int), data.ValueRange(0, 1)),
            "denormalize: expected floating point .*got int64",
        ),
        (
            lambda: data.normalize(np.zeros(3, np.float32), 256),
            "normalize: .*uint8 or uint16, got float32; to_integer makes",
        ),
        (lambda: data.normalize(np.zeros(3, np.int32), 256), "normalize: .*uint8 or uint16, got int32$"),
        (lambda: data.normalize(np.zeros(3, np.uint8), 65536), "levels=65536 do not fit in images of type uint8"),
        (lambda: data.normalize(np.zeros(3, np.uint8), 1), "normalize: expected 2 to 65536 levels, got levels=1"),
        (lambda: data.to_integer(np.zeros(3), 65537), "to_integer: expected 2 to 65536 levels, got levels=65537"),
        (lambda: data.to_integer(np.zeros(3, np.uint8), 256), r"floating point in \[-1, 1\], got uint8: are these int"),
        (lambda: data.to_integer(np.array([0, np.nan, np.inf]), 256), "to_integer: 2 of 3 values are non-finite"),
    ],
)
def test_conversions_refuse(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("levels", [2, 3, 10, 42, 56, 1000, 4096])
def test_unusual_numbers_of_levels_stay_in_range_and_come_back(levels):
    every = np.arange(levels).astype(np.uint16)
    x = data.normalize(every, levels)
    assert 1 - 2**-24 <= jnp.abs(x).max() <= 1
    np.testing.assert_array_equal(data.to_integer(x, levels), every)


# Grids and strips


def test_a_grid_is_filled_row_by_row():
    cells = ramp(5, 2, 3, 1)
    picture = data.make_grid(cells, 256, columns=2, padding=1)
    rows = [picture[1:3], picture[4:6], picture[7:9]]
    found = [row[:, left : left + 3] for row in rows for left in (1, 5)]
    np.testing.assert_array_equal(np.stack(found[:5]), cells)
    assert np.all(found[5] == images.BACKGROUND)
    # All that is not an image is background.
    assert np.count_nonzero(picture != images.BACKGROUND) == np.count_nonzero(cells != images.BACKGROUND)


def test_a_grid_of_so_many_rows_is_filled_column_by_column():
    cells = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    picture = data.make_grid(cells, 256, rows=2, padding=0)
    assert picture[..., 0].tolist() == [[0, 2, 4], [1, 3, images.BACKGROUND]]


def test_a_grid_without_padding_is_the_images_and_nothing_else():
    cells = ramp(4, 3, 3, 3)
    picture = data.make_grid(cells, 256, padding=0)
    np.testing.assert_array_equal(picture, np.block([[[cells[0]], [cells[1]]], [[cells[2]], [cells[3]]]]))


@pytest.mark.parametrize(("levels", "dtype"), LEVELS)
def test_black_is_black_and_white_is_white_at_any_depth(levels, dtype):
    cells = np.array([0, levels - 1], dtype).reshape(2, 1, 1, 1)
    assert data.make_grid(cells, levels, columns=2, padding=0).ravel().tolist() == [0, 255]


def test_sixteen_bits_are_reduced_to_the_nearest_of_eight():
    cells = np.array([128, 129, 257 * 77], np.uint16).reshape(3, 1, 1, 1)  # 257 / 2 = 128.5 is half a level
    assert data.make_grid(cells, 65536, columns=3, padding=0).ravel().tolist() == [0, 1, 77]


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 4), (5, 1)])
def test_every_channel_is_shown(channels, shown):
    cells = ramp(2, 2, 3, channels)
    picture = data.make_grid(cells, 256, columns=1, padding=0)
    assert picture.shape[-1] == shown
    if channels == shown:
        np.testing.assert_array_equal(picture, cells.reshape(4, 3, channels))
    else:
        for channel in range(channels):
            side = picture[:, 3 * channel : 3 * channel + 3, 0]
            np.testing.assert_array_equal(side, cells[..., channel].reshape(4, 3))


def test_the_padding_of_translucent_images_is_opaque():
    picture = data.make_grid(np.zeros((1, 2, 2, 4), np.uint8), 256)
    assert picture[0, 0].tolist() == [128, 128, 128, 255]
    assert picture[1, 1].tolist() == [0, 0, 0, 0]


def test_a_strip_shows_time_from_left_to_right_and_clips_noise():
    x_t = np.stack([np.full((2, 2, 1), value, np.float32) for value in (9, 1, -1, -9)])
    x0 = jnp.zeros((4, 2, 2, 1)) + 1 / 255
    picture = data.make_trajectory_grid([x_t, x0])[..., 0]
    assert picture[1, 1::3].tolist() == [255, 255, 0, 0]
    assert picture[4, 1::3].tolist() == [128] * 4


@pytest.mark.parametrize(("depth", "shown"), [(1, [0]), (3, [0, 1, 2]), (8, range(8)), (15, range(0, 15, 2))])
def test_slices_of_a_volume_stand_side_by_side(depth, shown):
    volumes = (np.arange(2 * depth).reshape(2, depth, 1, 1, 1) + np.zeros((3, 4, 1))).astype(np.uint8)
    picture = data.make_grid(volumes, 256, columns=1, padding=0)
    assert picture[::3, ::4, 0].tolist() == [[i * depth + k for k in shown] for i in range(2)]
    assert picture.shape == (6, 4 * len(shown), 1)


def test_a_grid_of_floats_is_that_of_their_eight_bits():
    values = np.linspace(-3, 7, 256, dtype=np.float32).reshape(1, 16, 16, 1)
    picture = data.make_grid(values, data.ValueRange(-3, 7), padding=0)
    assert picture.ravel().tolist() == list(range(256))


def test_strips_show_volumes():
    row = np.zeros((4, 3, 5, 6, 1))
    assert data.make_trajectory_grid([row, row]).shape == (2 * (5 + 1) + 1, 4 * (3 * 6 + 1) + 1, 1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: data.make_grid(np.zeros((1, 2, 2, 1)), 256), "uint8 or uint16, got float64; to_integer makes them"),
        (
            lambda: data.make_grid(ramp(1, 2, 2, 1)[0], 256),
            r"images \[N, H, W, C\], none of them 0, got shape \(2, 2, 1\)",
        ),
        (lambda: data.make_grid(ramp(1, 2, 2, 1)[:0], 256), r"got shape \(0, 2, 2, 1\)"),
        (lambda: data.make_grid(ramp(1, 5, 5, 1), 17), r"value 24, above levels - 1 = 16"),
        (
            lambda: data.make_grid(ramp(1, 2, 2, 1), 256, columns=0),
            "columns or rows, not both, >= 1 and padding >= 0, got columns=0, rows=None, padding=1",
        ),
        (lambda: data.make_grid(ramp(1, 2, 2, 1), 256, columns=1, rows=1), "got columns=1, rows=1, padding=1"),
        (lambda: data.make_grid(ramp(1, 2, 2, 1), 256, padding=-1), "got columns=None, rows=None, padding=-1"),
        (lambda: data.make_trajectory_grid([]), r"rows \[frames, H, W, C\] of one shape, got shapes \[\]"),
        (
            lambda: data.make_trajectory_grid([np.zeros((2, 2, 2, 1)), np.zeros((3, 2, 2, 1))]),
            r"one shape, got shapes \[\(2, 2, 2, 1\)",
        ),
        (lambda: data.make_trajectory_grid([np.full((1, 2, 2, 1), np.nan)]), "4 of 4 values are non-finite"),
    ],
)
def test_grids_refuse(call, text):
    with pytest.raises(ValueError, match=text):
        call()


# Files

NOT_TEXT: Any = {"seed": 1}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_holds_the_picture_and_the_text(tmp_path, channels):
    picture = ramp(1, 9, 16, channels)[0]
    text = {"seed": "17", "config": '{"T": 1000}\nlr = 2e-4', "écrit": "β ≤ 0.02"}
    data.write_png(tmp_path / "a.png", picture, text=text)
    found = data.read_png(tmp_path / "a.png")
    np.testing.assert_array_equal(found.image, picture)
    assert found.text == text
    assert b"tEXtseed\x0017" in (tmp_path / "a.png").read_bytes()  # as any other reader finds it


def test_scaling_makes_squares_of_pixels(tmp_path):
    picture = ramp(1, 4, 5, 3)[0]
    data.write_png(tmp_path / "a.png", picture, scale=3)
    found = data.read_png(tmp_path / "a.png").image
    np.testing.assert_array_equal(found, np.kron(picture, np.ones((3, 3, 1), np.uint8)))


def test_digits_can_be_read_back_from_a_picture_of_them(tmp_path):
    digits = data.load("digits").test[:9]
    data.write_png(tmp_path / "a.png", data.make_grid(digits, 17, columns=3, padding=0))
    found = data.read_png(tmp_path / "a.png").image.reshape(3, 8, 3, 8, 1).swapaxes(1, 2).reshape(9, 8, 8, 1)
    np.testing.assert_array_equal(np.rint(found / 255 * 16), digits)


def frames_of(path):
    from PIL import Image

    frames, durations = [], []
    with Image.open(path) as file:
        loop = file.info.get("loop")
        for i in range(getattr(file, "n_frames", 1)):
            file.seek(i)
            frames.append(np.asarray(file.convert("RGB")))
            durations.append(file.info["duration"])
    return frames, durations, loop


def test_a_grey_gif_is_exact_and_holds_its_last_frame(tmp_path):
    frames = [np.roll(ramp(1, 16, 16, 1)[0], shift, axis=0) for shift in range(4)]
    data.write_gif(tmp_path / "a.gif", frames, scale=2, duration=80)
    found, durations, loop = frames_of(tmp_path / "a.gif")
    assert (durations, loop) == ([80, 80, 80, 1500], 0)
    for frame, back in zip(frames, found, strict=True):
        np.testing.assert_array_equal(back, np.kron(np.repeat(frame, 3, -1), np.ones((2, 2, 1), np.uint8)))


def test_a_colour_gif_keeps_a_few_colours_exactly(tmp_path):
    draw = np.random.RandomState(0)
    colours = draw.randint(0, 256, (60, 3)).astype(np.uint8)
    frames = [colours[draw.randint(0, 60, (12, 12))] for _ in range(3)]
    data.write_gif(tmp_path / "a.gif", frames)
    for frame, back in zip(frames, frames_of(tmp_path / "a.gif")[0], strict=True):
        np.testing.assert_array_equal(back, frame)


def test_a_translucent_gif_is_shown_over_grey(tmp_path):
    clear, solid = np.zeros((4, 4, 4), np.uint8), np.full((4, 4, 4), 255, np.uint8)
    data.write_gif(tmp_path / "a.gif", [clear, solid])
    found, durations, _ = frames_of(tmp_path / "a.gif")
    assert [frame[0, 0].tolist() for frame in found] == [[128] * 3, [255] * 3]
    assert durations == [100, 1500]


def test_one_frame_is_a_gif_too(tmp_path):
    data.write_gif(tmp_path / "a.gif", [ramp(1, 4, 4, 1)[0]])
    np.testing.assert_array_equal(frames_of(tmp_path / "a.gif")[0][0][..., :1], ramp(1, 4, 4, 1)[0])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda p: data.write_png(p, np.zeros((2, 2, 1), np.uint16)),
            "write_png: .*uint8.*, got uint16",
        ),
        (lambda p: data.write_png(p, np.zeros((2, 2), np.uint8)), r"got uint8 \(2, 2\)"),
        (lambda p: data.write_png(p, np.zeros((2, 2, 2), np.uint8)), r"got uint8 \(2, 2, 2\)"),
        (lambda p: data.write_png(p, ramp(1, 2, 2, 1)[0], scale=0), "write_png: expected scale >= 1, got 0"),
        (lambda p: data.write_png(p, ramp(1, 2, 2, 1)[0], text=NOT_TEXT), "values of type str, got 'seed': 1"),
        (lambda p: data.write_png(p, ramp(1, 2, 2, 1)[0], text={"β": ""}), "1 to 79 printable latin-1.*'β'"),
        (lambda p: data.write_png(p, ramp(1, 2, 2, 1)[0], text={"": "x"}), "1 to 79 printable latin-1.*''"),
        (lambda p: data.write_gif(p, []), r"write_gif: expected frames of one shape, got shapes \[\]"),
        (lambda p: data.write_gif(p, [ramp(1, 2, 2, 1)[0], ramp(1, 2, 3, 1)[0]]), r"\[\(2, 2, 1\), \(2, 3, 1\)\]"),
        (lambda p: data.write_gif(p, [np.zeros((2, 2, 1))]), "write_gif: expected a picture uint8.*got float64"),
        (lambda p: data.write_gif(p, [ramp(1, 2, 2, 1)[0]], scale=0), "write_gif: expected scale >= 1, got 0"),
        (lambda p: data.write_gif(p, [ramp(1, 2, 2, 1)[0]], duration=5), "at least 20 ms .*got 5"),
    ],
)
def test_writers_refuse_and_leave_no_file(tmp_path, call, text):
    with pytest.raises(ValueError, match=text):
        call(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_what_is_no_png_is_refused(tmp_path):
    from PIL import Image

    (tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"a\.png: not a PNG file"):
        data.read_png(tmp_path / "a.png")
    data.write_png(tmp_path / "d.png", np.random.RandomState(0).randint(0, 256, (32, 32, 3), np.uint8))
    whole = (tmp_path / "d.png").read_bytes()
    for damaged in (whole[:-500], whole[:40], whole[:60] + b"?" + whole[61:]):
        (tmp_path / "d.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"d\.png: not a PNG file, or a damaged one"):
            data.read_png(tmp_path / "d.png")
    Image.new("1", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: expected a PNG of mode L, RGB or RGBA, got mode 1"):
        data.read_png(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError, match=r"c\.png"):
        data.read_png(tmp_path / "c.png")


@pytest.mark.parametrize(("width", "scale"), [(8, 8), (28, 2), (32, 2), (64, 1), (256, 1)])
def test_previews_are_large_enough_to_see_and_no_larger(width, scale):
    assert images.preview_scale((10, width, 3)) == scale
    assert images.preview_scale((2, 10, 4, 1)) == 8  # two slices side by side
