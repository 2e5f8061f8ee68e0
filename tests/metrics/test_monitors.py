"""Monitors: what is off is flagged, what is honest is not, and the numbers are those of closed forms and of scipy."""

import json

import numpy as np
import pytest
import scipy.stats

from ddpm_jax import data, tracking
from ddpm_jax.metrics import monitors
from ddpm_jax.metrics.monitors.memorisation import _fisher_p_value, memorisation_from_distances

DIGITS = data.load("digits")
ALL = np.concatenate([DIGITS.train, DIGITS.test])


def photos(rng, count):
    """Colour images uint8 [count, 8, 8, 3] whose brightness varies more than their tint, as in photographs."""
    light, tint = rng.normal(0.5, 0.12, (count, 1, 1, 1)), rng.normal(0, 0.03, (count, 1, 1, 3))
    contrast = np.exp(rng.normal(-2, 0.5, (count, 1, 1, 1)))
    x = light + tint + contrast * rng.normal(size=(count, 8, 8, 1)) + rng.normal(0, 0.02, (count, 8, 8, 3))
    return to_bytes(255 * x)


def to_bytes(x):
    return np.rint(np.clip(x, 0, 255)).astype(np.uint8)


def shift(samples, images, levels=256):
    return monitors.colour_shift(
        monitors.colour_statistics(samples, levels), monitors.colour_statistics(images, levels)
    )


# Colours


def test_a_shift_of_one_channel_is_flagged_and_honest_samples_are_not():
    """64 samples against 1,000: 3 % more red.  Of 2,000 honest draws none was flagged, so one of 200 is luck.

    Brightness moves all channels by 0.12, so that red alone is 2 standard errors off; against the other channels, whose
    scatter is 0.03, it is 6 on average.
    """
    rng = np.random.default_rng(0)
    known = monitors.colour_statistics(photos(rng, 1000), 256)
    false = 0
    for seed in range(200):
        samples = photos(rng, 64)
        false += monitors.colour_shift(monitors.colour_statistics(samples, 256), known).is_off.any()
        if seed < 20:
            red = to_bytes(samples + np.array([0.03 * 255, 0, 0]))
            found = monitors.colour_shift(monitors.colour_statistics(red, 256), known)
            assert found.is_off[0] and np.argmax(np.abs(found.tint.mean_z)) == 0
            assert found.tint.mean[0] == pytest.approx(0.02, abs=4 * 0.03 / 8)
    assert false <= 1


def test_honest_digits_are_not_flagged_however_few_there_are():
    """Nor against 16 training images, where the scatter itself is uncertain."""
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(100):
        order = rng.permutation(len(ALL))
        for samples, images in ((order[:16], order[16:]), (order[:64], order[64:80])):
            false += shift(ALL[samples], ALL[images], 17).is_off.any()
    assert false <= 1


def test_rare_images_do_not_raise_false_alarms():
    """One image in twenty is bright and the others all alike: 16 images often have none of them."""
    rng = np.random.default_rng(2)
    images = np.where(rng.random((400, 80)) < 0.05, 255, rng.integers(0, 3, (400, 80))).astype(np.uint8)
    images = images.reshape(400, 80, 1, 1, 1)
    assert sum(shift(row[:64], row[64:]).is_off.any() for row in images) <= 4


def test_a_change_of_contrast_is_flagged_by_the_standard_deviation_alone():
    rng = np.random.default_rng(16)
    centre = DIGITS.test.mean()  # rounded at random, because blacks are not free to lie between two levels
    flat = np.floor(centre + 0.9 * (DIGITS.test - centre) + rng.random(DIGITS.test.shape)).astype(np.uint8)
    hard = to_bytes(128 + 1.5 * (photos(rng, 256) - 128.0))
    for changed, images, levels, sign in ((flat, DIGITS.train, 17, -1), (hard, photos(rng, 1000), 256, 1)):
        found = shift(changed, images, levels).channels
        assert found.std_is_off.all() and np.all(np.sign(found.std_z) == sign) and not found.mean_is_off.any()


def test_tints_that_differ_from_image_to_image_and_paleness_are_flagged():
    rng = np.random.default_rng(3)
    known, samples = photos(rng, 1000), photos(rng, 256).astype(float)
    tinted = to_bytes(samples + 255 * rng.normal(0, 0.06, (256, 1, 1, 3)))
    pale = to_bytes(samples.mean(-1, keepdims=True) + 0.5 * (samples - samples.mean(-1, keepdims=True)))
    for changed, sign in ((tinted, 1), (pale, -1)):
        found = shift(changed, known)
        assert found.tint.std_is_off.all() and np.all(np.sign(found.tint.std) == sign)
        assert not found.channels.mean_is_off.any() and found.is_off.all()


def test_the_errors_are_those_of_means_over_images():
    """400 draws of 64 digits: the scatter of their means and standard deviations, itself known to 3.5 %."""
    rng = np.random.default_rng(4)
    known = monitors.colour_statistics(ALL, 17).channels
    statistics = [monitors.colour_statistics(ALL[rng.integers(0, len(ALL), 64)], 17).channels for _ in range(400)]
    error = 1 / np.sqrt(2 * 400)
    assert np.std([d.mean for d in statistics]) == pytest.approx(known.mean_error[0] / 8, rel=4 * error)
    assert np.std([d.std for d in statistics]) == pytest.approx(known.std_error[0] / 8, rel=4 * error)
    pixels = ALL.astype(float) / 16
    np.testing.assert_allclose([known.mean[0], known.std[0]], [pixels.mean(), pixels.std()], rtol=1e-12)


@pytest.mark.parametrize(("levels", "dtype"), [(17, np.uint8), (256, np.uint8), (65536, np.uint16)])
def test_the_distance_of_a_shift_by_k_levels_is_k_levels(levels, dtype):
    rng = np.random.default_rng(5)
    images = rng.integers(0, levels - 7, (20, 4, 4, 5)).astype(dtype)
    k = np.arange(5)
    found = shift((images + k).astype(dtype), images, levels)
    np.testing.assert_allclose(found.distance, k / (levels - 1), rtol=1e-9)
    np.testing.assert_allclose(found.channels.mean, k / (levels - 1), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.channels.std, 0, atol=1e-12)


def test_the_distance_of_histograms_is_that_of_scipy():
    rng = np.random.default_rng(6)
    samples, images = rng.integers(0, 200, (9, 5, 4, 2), np.uint8), photos(rng, 30)[..., :2]
    found = shift(samples, images)
    for c in range(2):
        want = scipy.stats.wasserstein_distance(samples[..., c].ravel(), images[..., c].ravel()) / 255
        assert found.distance[c] == pytest.approx(want, rel=1e-9)


def test_sixteen_bits_of_the_same_images_have_the_same_numbers():
    rng = np.random.default_rng(7)
    samples, images = photos(rng, 20), photos(rng, 40)
    eight, sixteen = shift(samples, images), shift(samples * np.uint16(257), images * np.uint16(257), 65536)
    for a, b in ((eight.channels, sixteen.channels), (eight.tint, sixteen.tint)):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(eight.distance, sixteen.distance, rtol=1e-9)


def test_images_taken_in_many_parts_are_all_counted():
    images = np.random.default_rng(8).integers(0, 256, (20, 256, 256, 2), np.uint8)  # 2^21 values and more
    found = monitors.colour_statistics(images, 256)
    np.testing.assert_allclose(found.channels.mean, images.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_array_equal(found.histogram.sum(1), [20 * 256 * 256] * 2)


def test_constant_images_are_equal_or_not_at_all():
    grey = np.full((20, 4, 4, 3), 77, np.uint8)
    same = shift(grey, grey[:, :2])
    assert not same.is_off.any() and np.all(same.channels.mean_z == 0) and np.all(same.channels.std_z == 0)
    other = shift(grey + np.array([0, 0, 1], np.uint8), grey)
    assert other.is_off.tolist() == [False, False, True] and other.channels.mean_z[2] == np.inf
    # a sixteen-bit level is nothing that anyone sees
    deep = np.full((20, 4, 4, 1), 40000, np.uint16)
    found = shift(deep + np.uint16(1), deep, 65536)
    assert found.channels.mean_z[0] == np.inf and not found.is_off.any()


def test_few_images_are_not_judged():
    dark = np.zeros_like(DIGITS.test)
    assert shift(dark[:16], DIGITS.train, 17).is_off.all()
    for samples, images, text in (
        (dark[:15], DIGITS.train, "only 15 samples"),
        (dark, DIGITS.train[:3], "only 3 data"),
        (dark[:1], DIGITS.train[:1], "only 1 samples and 1 data"),
    ):
        found = shift(samples, images, 17)
        assert not found.is_off.any() and found.not_judged_because == text
    assert np.isnan(found.channels.mean_z[0])  # one image against one: nothing is known of their scatter


# Copies


def verdict(samples, train, held_out):
    return monitors.memorisation_report(samples, monitors.distance_reference(train, held_out))


def test_half_of_the_held_out_digits_are_new_to_the_training_images():
    """40 divisions of all digits into training, held-out and samples: none is called near or copies."""
    rng = np.random.default_rng(10)
    found = []
    for _ in range(40):
        train, held_out, samples = np.split(rng.permutation(len(ALL))[:464], [300, 400])
        found.append(verdict(ALL[samples], ALL[train], ALL[held_out]).verdict)
    assert found.count("new") >= 39
    honest = verdict(DIGITS.test[::2], DIGITS.train, DIGITS.test[1::2])
    assert honest.verdict == "new" and honest.reason == "no sign of copying" and honest.copied == 0


def test_distances_are_root_mean_squares_in_levels():
    train = np.zeros((1, 8, 8, 1), np.uint8)
    found = verdict(np.full((64, 8, 8, 1), 3, np.uint8), train, np.full((40, 8, 8, 1), 5, np.uint8))
    assert found.samples.tolist() == [3, 3, 3] and found.held_out.tolist() == [5, 5, 5]


@pytest.mark.parametrize("noise", [0, 0.5])
@pytest.mark.parametrize("held_out", [0, 2, 200])
def test_copies_of_sixteen_images_are_copies_whatever_is_held_out(noise, held_out):
    rng = np.random.default_rng(11)
    drawn = DIGITS.train[rng.integers(0, 16, 64)] + noise * rng.normal(size=(64, 8, 8, 1))
    copies = np.clip(np.rint(drawn), 0, 16).astype(np.uint8)
    found = verdict(copies, DIGITS.train[:16], DIGITS.test[:held_out])
    assert found.verdict == "copies" and found.copied == 1
    fresh = verdict(DIGITS.test[200:264], DIGITS.train[:16], DIGITS.test[:held_out])
    assert fresh.verdict == ("new" if held_out else "unknown")  # 16 images against each other alone are too few


def test_training_images_are_copies_of_themselves_and_repetitions_change_nothing():
    samples = DIGITS.train[:64]
    for train in (DIGITS.train, np.concatenate([DIGITS.train, DIGITS.train])):
        found = verdict(samples, train, DIGITS.test)
        assert (found.verdict, found.copied, found.held_out_copied) == ("copies", 1, 0)
    # near copies of images that are there twice are as far from the second as from the first
    noisy = np.clip(samples + np.random.default_rng(12).integers(-1, 2, samples.shape), 0, 16).astype(np.uint8)
    assert verdict(noisy, np.concatenate([DIGITS.train[:200]] * 2), DIGITS.test).verdict == "copies"
    # and given distances alone, an image at no distance from two is a copy
    known = np.array([[2.0, 2.1]] * 100)
    assert memorisation_from_distances(np.zeros((64, 2)), known).verdict == "copies"


def test_one_copy_in_four_is_enough():
    samples = np.concatenate([DIGITS.train[:16], DIGITS.test[:48]])
    assert verdict(samples, DIGITS.train, DIGITS.test[48:]).verdict == "copies"
    few = verdict(np.concatenate([DIGITS.train[:8], DIGITS.test[:56]]), DIGITS.train, DIGITS.test[56:204])
    assert few.verdict == "unknown" and few.reason.startswith("perhaps copies, more samples would tell: 8 of 64 ")


def test_images_between_two_training_images_are_near_and_no_copies():
    train = DIGITS.train.astype(float)
    rows = train.reshape(len(train), -1)
    far = ((rows[:64, None] - rows) ** 2).sum(-1) + 1e9 * np.eye(64, len(rows))
    between = np.rint((train[:64] + train[far.argmin(1)]) / 2).astype(np.uint8)
    found = verdict(between, DIGITS.train, DIGITS.test)
    assert found.verdict == "near" and found.near > 0.9 and "as near as 5 % of the held-out images" in found.reason


def test_one_training_image_has_no_second_to_compare_with():
    train, known = DIGITS.train[:1], DIGITS.test[:100]
    assert verdict(np.repeat(train, 64, 0), train, known).verdict == "copies"
    close = np.minimum(np.repeat(train, 64, 0) + 1, 16).astype(np.uint8)
    assert verdict(close, train, known).verdict == "near"
    assert verdict(DIGITS.test[100:164], train, known).verdict == "new"


def test_what_cannot_be_judged_is_called_unknown():
    train = DIGITS.train
    for samples, known, text in (
        (DIGITS.test[:4], DIGITS.test[4:], "cannot judge copying by 4 samples and 293 held-out images"),
        (DIGITS.test[:64], train[:100], "100 held-out images, 100 of which are copies themselves"),
    ):
        found = verdict(samples, train, known)
        assert found.verdict == "unknown" and found.reason.endswith(text)
    none = memorisation_from_distances(np.array([[1.0, 2.0]] * 64), np.zeros((0, 2)))
    assert none.verdict == "unknown" and np.isnan(none.held_out).all()


@pytest.mark.parametrize(("hits", "n", "known", "m"), [(0, 5, 0, 5), (3, 64, 1, 100), (20, 64, 5, 100), (5, 5, 40, 40)])
def test_the_probability_of_chance_is_that_of_fishers_exact_test(hits, n, known, m):
    _, want = scipy.stats.fisher_exact([[hits, n - hits], [known, m - known]], alternative="greater")
    assert _fisher_p_value(hits, n, known, m) == pytest.approx(want, rel=1e-9)


def test_sixteen_bits_of_the_same_images_are_as_near():
    samples, train, known = (
        photos(np.random.default_rng(13), 184)[:64],
        *np.split(photos(np.random.default_rng(14), 120), 2),
    )
    eight = verdict(samples, train, known)
    sixteen = verdict(*(x * np.uint16(257) for x in (samples, train, known)))
    np.testing.assert_allclose(sixteen.samples, 257 * eight.samples, rtol=1e-9)
    assert sixteen.verdict == eight.verdict == "new"


# Loss by t


def test_each_tenth_of_the_times_has_its_own_mean():
    t = np.arange(1, 1001)
    tenths = monitors.loss_by_tenth(t, t.astype(np.float32), 1000)
    np.testing.assert_allclose(tenths, 50.5 + 100 * np.arange(10))
    few = monitors.loss_by_tenth(np.array([1, 1, 4]), np.array([1.0, 3.0, 5.0]), 4)
    assert few[0] == 2 and few[7] == 5 and np.isnan(few[[1, 2, 3, 4, 5, 6, 8, 9]]).all()


# Words and numbers


def test_a_report_says_what_it_found(tmp_path):
    reference = monitors.reference(DIGITS.train, DIGITS.test[1::2], 17)
    honest = monitors.report(DIGITS.test[::2], reference)
    assert monitors.lines(honest) == [
        "samples   mean 0.304 (data 0.306, z -0.6)  std 0.374 (data 0.377, z -1.5)  histogram distance 0.003",
        "neighbours  nearest training image, in levels, 5 %/median/95 %: 1.39/1.99/2.91 (held-out 1.46/2.09/2.92): "
        "no sign of copying",
    ]
    brightest = DIGITS.train[np.argsort(DIGITS.train.mean((1, 2, 3)))[-64:]]
    colours, near = monitors.lines(monitors.report(brightest, reference))
    assert "  <- off: mean" in colours
    assert near.endswith(": <- copies: 64 of 64 samples are each near to one training image alone (held-out: 0 of 148)")
    file = tracking.MetricsLog(tmp_path / "metrics.jsonl")
    file.write({"step": 1, **monitors.metrics(honest)})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["copying"] == "new" and row["channels_off"] == [] and row["copied_share"] == 0
    assert row["sample_mean"][0] == pytest.approx(DIGITS.test[::2].mean() / 16)
    assert round(row["nearest_train_median"], 2) == 1.99


def test_colour_has_a_line_per_channel_and_many_channels_have_the_worst():
    rng = np.random.default_rng(15)
    train, samples = photos(rng, 300), photos(rng, 64)
    red = to_bytes(samples + np.array([20.0, 0, 0]))
    lines = monitors.lines(monitors.report(red, monitors.reference(train, photos(rng, 100), 256)))
    assert [line[:10] for line in lines] == ["samples 0 ", "samples 1 ", "samples 2 ", "neighbours"]
    assert "<- off:" in lines[0] and "tint" in lines[0].split("<- off:")[1]

    def five(images, third):
        return np.concatenate([images[..., [0, 1, 1]], third[..., :1], images[..., 2:]], -1)

    reference = monitors.reference(five(train, train), five(photos(rng, 30), photos(rng, 30)), 256)
    colour_line = monitors.lines(monitors.report(five(samples, red), reference))[0]
    assert colour_line.startswith("samples   5 channels, ") and " off; channel 3: mean " in colour_line
    assert monitors.lines(monitors.report(samples[:5], monitors.reference(train, train[:0], 256)))[3] == (
        "          colours not judged: only 5 samples, 16 are needed"
    )


def test_losses_of_any_size_can_be_read():
    tenths = np.array([123.4, 12.3, 9.99, 1.23, 0.41, 0.0996, 0.0456, 0.00789, 0, np.nan])
    assert (
        monitors.loss_by_tenth_line(tenths) == "loss by t  123 12 10 1.2 0.41 0.10 0.046 0.0079 0.0 - (tenths of 1..T)"
    )


GREY, COLOUR = DIGITS.test[:2], np.zeros((2, 8, 8, 3), np.uint8)
PAIRS = np.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: monitors.colour_statistics(GREY / 16, 17),
            "colour_statistics: expected images uint8 or uint16 .* got float64",
        ),
        (
            lambda: monitors.colour_statistics(GREY[0], 17),
            r"colour_statistics: expected images .*\[n, H, W, C\].* got uint8 \(8, 8, 1\)",
        ),
        (
            lambda: monitors.colour_statistics(GREY[:0], 17),
            r"colour_statistics: .*\[n, H, W, C\], got uint8 \(0, 8, 8, 1\)",
        ),
        (
            lambda: monitors.colour_statistics(GREY, 65536),
            "colour_statistics: levels must be 2 to 256, got 65536",
        ),
        (
            lambda: monitors.colour_statistics(GREY, 8),
            "colour_statistics: images hold the value 16, above levels - 1 = 7",
        ),
        (lambda: shift(COLOUR, GREY), r"colour_shift: .*\(channels, levels\) \(3, 256\) and \(1, 256\)"),
        (
            lambda: monitors.colour_shift(monitors.colour_statistics(GREY, 17), monitors.colour_statistics(GREY, 256)),
            r"colour_shift: samples and data must be alike, .*\(1, 17\) and \(1, 256\)",
        ),
        (lambda: monitors.distance_reference(GREY[:0], GREY), r"distance_reference: .*got uint8 \(0, 8, 8, 1\)"),
        (
            lambda: monitors.distance_reference(GREY, COLOUR),
            r"distance_reference: .*must be alike, got uint8 \(2, 8, 8, 1\) and uint8 \(2, 8, 8, 3\)",
        ),
        (
            lambda: verdict(COLOUR, GREY, GREY),
            "memorisation_report: expected samples .* images, 64 values of type uint8 each, got 192 of type",
        ),
        (lambda: verdict(GREY[:0], GREY, GREY), r"memorisation_report: expected images .*got uint8 \(0, 8, 8, 1\)"),
        (
            lambda: memorisation_from_distances(PAIRS[:, :1], PAIRS),
            r"memorisation_from_distances: expected samples \[n, 2\], .*got shape \(3, 1\)",
        ),
        (
            lambda: memorisation_from_distances(PAIRS, PAIRS * np.nan),
            r"memorisation_from_distances: expected held_out \[n, 2\], d1 >= 0",
        ),
        (
            lambda: memorisation_from_distances(PAIRS[:0], PAIRS),
            "memorisation_from_distances: expected at least one sample, got none",
        ),
        (
            lambda: monitors.loss_by_tenth(np.ones(3, int), np.ones(2), 4),
            r"loss_by_tenth: expected t \[n\] and loss \[n\], got shapes \(3,\) and \(2,\)",
        ),
        (
            lambda: monitors.loss_by_tenth(np.array([0, 3]), np.ones(2), 4),
            r"loss_by_tenth: expected times 1 .. T = 4, got 0 .. 3",
        ),
    ],
)
def test_monitors_refuse(call, text):
    with pytest.raises(ValueError, match=text):
        call()
