"""What networks are told in training and asked for in sampling, and the two programs of a run that is told."""

import dataclasses
import functools
import json
import logging
import shutil
import types

import jax
import numpy as np
import pytest
import tiny_run
from run_programs import TINY, assert_same_bytes, load_state, logged_losses, run, saved_steps

from ddpm_jax import config as configs
from ddpm_jax import data, pipeline
from ddpm_jax.conditions import DatasetConditions
from ddpm_jax.config import flags
from ddpm_jax.data.images import BACKGROUND
from ddpm_jax.evaluate.figures import stochastic
from ddpm_jax.evaluate.options import StochasticOptions
from ddpm_jax.model import check
from ddpm_jax.pipeline import outputs
from ddpm_jax.pipeline.user_images import ConditioningImage

CONDITIONAL = dataclasses.replace(
    tiny_run.CONFIG,
    net=dataclasses.replace(tiny_run.CONFIG.net, num_classes=10),
    text=configs.Text(layers=1, width=8, heads=2, length=24),
    condition=configs.Condition(templates=("a {}", "the digit {}")),
)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@functools.cache
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.mktemp("said") / "run", CONDITIONAL, label_names=NAMES)


@functools.cache
def model(home):
    return pipeline.Pipeline(home, step=None, weights="ema", sampling={"steps": 4})


def drawn(model, start=0, num=6, **more):
    return np.concatenate([part.x for part in model.draw(seed=1, start=start, num=num, **more)])


# --- training


def test_an_image_is_told_its_label_and_the_texts_of_its_class():
    conditional = DatasetConditions(CONDITIONAL, digits())
    places = np.array([[5, 900], [31, 7]])
    rows = conditional.gather(places)
    labels = digits().train_labels[places]
    np.testing.assert_array_equal(rows.label, labels)
    assert rows.tokens.shape == (2, 2, 2, 24)
    for label, texts in zip(labels.reshape(-1), rows.tokens.reshape(-1, 2, 24), strict=True):
        words = [bytes(text).rstrip(b"\0").decode() for text in texts]
        assert words == [f"a {NAMES[label]}", f"the digit {NAMES[label]}"]
    held = DatasetConditions(CONDITIONAL, digits(), held_out=True).gather_first_text(np.arange(3))
    np.testing.assert_array_equal(held.label, digits().test_labels[:3])
    assert held.tokens.shape == (3, 24)


def test_a_network_that_is_told_nothing_has_nothing_to_be_told():
    rows = DatasetConditions(tiny_run.CONFIG, digits()).gather(np.arange(4))
    assert not jax.tree.leaves(rows)


@pytest.mark.parametrize(
    ("config", "change", "text"),
    [
        (CONDITIONAL, {"train_labels": None}, "digits has no labels, and net.num_classes = 10"),
        (
            dataclasses.replace(CONDITIONAL, net=dataclasses.replace(CONDITIONAL.net, num_classes=9)), {},
            "has 10 labels, and net.num",
        ),
        (
            dataclasses.replace(CONDITIONAL, text=dataclasses.replace(CONDITIONAL.text, length=8)), {},
            "a text of 14 bytes where 8 is the most: 'the digit zero'; --text.length",
        ),
    ],
)  # fmt: skip
def test_data_that_do_not_say_what_the_network_is_told_are_refused(config, change, text):
    with pytest.raises(ValueError, match=text):
        DatasetConditions(config, digits()._replace(**change))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"net": {"num_classes": -1}}, r"net.num_classes must lie in \[0, 1000000\], got -1"),
        ({"text": {"layers": 1, "width": 10, "heads": 4}}, "text.width must be a multiple of text.heads"),
        ({"condition": {"dropout": 1.0}}, r"condition.dropout must lie in \[0, 1\), got 1.0"),
        ({"condition": {"templates": ["a {}"]}}, "condition.templates need a text encoder, but text.layers is 0"),
        ({"sampling": {"guidance": 2.0}}, "guidance 2 needs a network with labels or texts"),
        ({"sampling": {"guidance": float("inf")}}, r"guidance must lie in \[-1e6, 1e6\], got inf"),
        (
            {"sampling": {"guidance": 2.0}, "net": {"num_classes": 3}, "condition": {"dropout": 0.0}},
            "needs training with condition.dropout above 0",
        ),
        ({"sampling": {"guidance_interval": [5, 2]}}, "guidance_interval must be two times"),
        ({"sampling": {"guidance_interval": [1, 2000]}}, "guidance_interval must be two times"),
    ],
)
def test_configs_that_cannot_be_told_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        check(configs.from_dict(change))


# --- sampling


def test_labels_are_asked_for_by_name_or_number(home, run_folder):
    def ask(*args, **kinds):
        return pipeline.parse_request(flags.ConditionOptions(*args, **kinds), flags.SamplingOptions(), model(home))

    assert ask("three").labels == ask("3").labels == (3,)
    assert ask(labels="seven, 0,2").labels == (7, 0, 2) and ask(labels="all").labels == tuple(range(10))
    assert ask(text=("a", "b")) == pipeline.ConditionRequest((), ("a", "b"))
    with pytest.raises(ValueError, match=r"no label 'ten': this run's are 0 to 9 \(zero, one"):
        ask("ten")
    with pytest.raises(ValueError, match="--label is one label for all images and --labels a list"):
        ask("1", "2,3")
    with pytest.raises(ValueError, match="this run's network takes none"):
        plain = pipeline.Pipeline(run_folder, step=None, weights="ema", sampling={})
        pipeline.parse_request(flags.ConditionOptions("1"), flags.SamplingOptions(), plain)
    with pytest.raises(ValueError, match="--guidance 2 needs a condition"):
        pipeline.parse_request(flags.ConditionOptions(), flags.SamplingOptions(guidance=2.0), model(home))


def asked_of(label_names, untrained=(), **wanted):
    few = types.SimpleNamespace(label_names=label_names, untrained_labels=untrained, config=CONDITIONAL)
    return pipeline.parse_request(flags.ConditionOptions(**wanted), flags.SamplingOptions(), few).labels


def test_where_names_are_numbers_names_alone_are_meant():
    names = ("1", "2", "3")
    assert asked_of(names, labels="1,3, 2") == (0, 2, 1) and asked_of(names, label="3") == (2,)
    for label in ("0", "4"):
        with pytest.raises(ValueError, match=f"no label '{label}': this run's are called 1, 2, 3"):
            asked_of(names, labels=f"1,{label}")
    with pytest.raises(ValueError, match="no label '2': this run's are called 7, cat"):
        asked_of(("7", "cat"), label="2")


def test_what_is_not_a_label_is_refused():
    for wanted in ({"labels": ""}, {"labels": "a,"}, {"label": "all"}):
        with pytest.raises(ValueError, match=r"no label '(all)?': this run's are 0 to 9 \(a, b"):
            asked_of(("a", "b"), **wanted)
    assert asked_of(("a", "all"), label="all") == (1,) and len(asked_of(("a", "all"), labels="all")) == 10


def test_a_name_is_found_in_either_form_of_its_accents():
    for spelling in ("caf\u00e9", "cafe\u0301"):
        assert asked_of(("tea", "caf\u00e9"), label=spelling) == (1,)


def test_what_moves_a_cursor_is_escaped_where_it_is_said():
    requested = pipeline.ConditionRequest((0, 1), ("x\x1b[2J",), (ConditioningImage("a\x1b.png", "", None),))
    conditional = requested.describe(("a\x1b[31m", "caf\u00e9"))
    assert conditional == r"labels 'a\x1b[31m', caf\u00e9 and texts 'x\x1b[2J' and images 'a\x1b.png'".replace(
        "\\u00e9", "\u00e9"
    )
    with pytest.raises(ValueError, match=r"\('a\\x1b', b\)"):
        asked_of(("a\x1b", "b"), label="c")


def test_labels_that_no_training_image_had_are_refused():
    names = ("a", "b", "c")
    assert asked_of(names, (1, 3, 4, 5, 6, 7, 8, 9), labels="all") == (0, 2)
    for label in ("b", "1"):
        with pytest.raises(ValueError, match=f"label '{label}' is requested, but no training image"):
            asked_of(names, (1,), labels=f"a,{label}")


@pytest.mark.parametrize(
    ("requested", "config", "text"),
    [
        (pipeline.ConditionRequest((1,)), tiny_run.CONFIG, "labels are requested, but this run's network"),
        (pipeline.ConditionRequest((), ("x",)), tiny_run.CONFIG,
         "a text is given, but this run's network takes none"),
        (pipeline.ConditionRequest((10,)), CONDITIONAL, "label 10 is requested, but this run has labels 0 to 9"),
        (pipeline.ConditionRequest((), ("x" * 30,)), CONDITIONAL, "a text of 30 bytes where 24 is the most"),
        (
            pipeline.ConditionRequest(), dataclasses.replace(CONDITIONAL, condition=configs.Condition(dropout=0.0)),
            "never unconditional .*give a label or a text",
        ),
    ],
)  # fmt: skip
def test_what_a_network_cannot_be_told_is_not_asked_of_it(requested, config, text):
    with pytest.raises(ValueError, match=text):
        requested.check(config)


def test_what_needs_the_unconditional_network_asks_for_no_label_or_text(home, monkeypatch):
    """Nothing is drawn before it is refused."""
    requested = model(home).with_request(pipeline.ConditionRequest((3,), ("x",)))
    monkeypatch.setattr(stochastic.figure, "draw_states", None)
    with pytest.raises(ValueError, match="the unconditional network: leave out the labels three and t"):
        stochastic.sample_continuations(requested, StochasticOptions())


def test_image_i_is_told_the_label_and_the_text_of_its_turn(home):
    requested = pipeline.ConditionRequest((4, 1, 7), ("a four", "a one"))
    rows = requested.gather(CONDITIONAL, (8, 8, 1), np.array([5, 6, 7, 8]))
    np.testing.assert_array_equal(rows.label, [7, 4, 1, 7])
    assert [bytes(row).rstrip(b"\0") for row in rows.tokens] == [b"a one", b"a four", b"a one", b"a four"]
    whole = drawn(model(home).with_request(requested, guidance=2.0))
    np.testing.assert_array_equal(drawn(model(home).with_request(requested, guidance=2.0), 3, 2), whole[3:5])
    # which is image 3 of a call that asks for its label and text alone
    alone = drawn(model(home).with_request(pipeline.ConditionRequest((4,), ("a one",)), guidance=2.0))
    np.testing.assert_array_equal(alone[3], whole[3])
    assert np.abs(alone - whole)[[0, 1, 2, 4, 5]].max() > 1e-3


@pytest.mark.parametrize(
    ("requested", "num", "rows"),
    [
        (pipeline.ConditionRequest((), ("a one", "a two")), 5, [[0, 2, 4], [1, 3]]),
        (pipeline.ConditionRequest((3, 5), ("a one", "a two", "x")), 12, [[i, i + 6] for i in range(6)]),
        (pipeline.ConditionRequest((3, 5, 7)), 5, [[0, 1, 2], [3, 4]]),  # not two images of each
        (pipeline.ConditionRequest((3,), ("a three",)), 5, [[0, 1, 2], [3, 4]]),
    ],
)
def test_each_of_several_conditions_has_a_row_of_the_grid(home, tmp_path, requested, num, rows):
    levels = np.delete(np.arange(17, dtype=np.uint8), 8)  # that of the background
    images = np.zeros((num, 8, 8, 1), np.uint8) + levels[:num].reshape(-1, 1, 1, 1)
    outputs.write_outputs(model(home).with_request(requested), images, tmp_path, {"asked": {}})
    picture = data.read_png(tmp_path / "grid.png").image
    scale = data.preview_scale((8, 8, 1))
    found = picture[4 * scale :: 9 * scale, 4 * scale :: 9 * scale, 0].tolist()  # the middle of each cell
    index = {int(255 * level / 16 + 0.5): i for i, level in enumerate(levels.tolist())}
    assert [[index[value] for value in row if value != BACKGROUND] for row in found] == rows


def test_keeping_the_way_or_other_batches_change_no_image(home):
    requested = model(home).with_request(pipeline.ConditionRequest((2, 3)), guidance=1.5)
    whole = drawn(requested)
    np.testing.assert_array_equal(drawn(requested, batch=1), whole)
    saved = drawn(requested, save_at=[20, 0])
    np.testing.assert_allclose(saved[:, 0, 1], whole, atol=1e-5)


def test_guidance_of_1_is_the_condition_and_of_0_nothing_and_nothing_needs_no_guidance(home):
    unconditional = drawn(model(home))
    requested = pipeline.ConditionRequest((2,), ("a two",))
    conditional, free = (drawn(model(home).with_request(requested, guidance=scale)) for scale in (1.0, 0.0))
    np.testing.assert_allclose(free, unconditional, atol=1e-4)
    assert np.abs(conditional - unconditional).max() > 1e-3
    np.testing.assert_array_equal(
        drawn(model(home).with_request(pipeline.ConditionRequest(), guidance=3.0)), unconditional
    )
    # guidance at no visited time is guidance of 1
    never = model(home).with_request(requested, guidance=3.0, guidance_interval=[2, 3])
    assert not {2, 3} & set(never.times.tolist())
    np.testing.assert_array_equal(drawn(never), conditional)


def test_no_label_text_guidance_eta_seed_or_spacing_is_compiled_anew(home, caplog):
    def draw(requested, seed, **sampling):
        return [*model(home).with_request(requested, sampler="ddim", **sampling).draw(seed=seed, start=0, num=3)]

    draw(pipeline.ConditionRequest(), 0)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        draw(pipeline.ConditionRequest((3,)), 1, guidance=2.0)
        draw(pipeline.ConditionRequest((1, 2), ("a one", "the digit two", "x")), 2, guidance=0.5, eta=0.7)
        draw(pipeline.ConditionRequest((), ("y",)), 3, guidance=4.0, guidance_interval=[1, 9], spacing="quadratic")
        assert not [line for line in caplog.messages if line.startswith("Compiling")]
        draw(pipeline.ConditionRequest((3,)), 1, guidance=2.0, steps=5)
        assert len([line for line in caplog.messages if line.startswith("Compiling")]) == 1


def test_the_bound_is_of_the_network_that_is_told_nothing(home):
    denoise = model(home).denoiser(model(home).params)
    found = jax.eval_shape(denoise, np.zeros((2, 8, 8, 1), np.float32), np.int32(5))
    assert found.x0.shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match=r"for the unconditional network: leave out the labels one$"):
        model(home).with_request(pipeline.ConditionRequest((1,))).denoiser(model(home).params)
    always = model(home)
    always.config = dataclasses.replace(CONDITIONAL, condition=configs.Condition(dropout=0.0))
    for request in (pipeline.ConditionRequest(), pipeline.ConditionRequest((1,))):
        with pytest.raises(ValueError, match=r"this run's never is: condition\.dropout is 0"):
            always.with_request(request).denoiser(always.params)


# --- the programs

CONDITIONAL_TINY = TINY.replace(
    "net=Net(8, (1,), 1, (), dropout=0.1)",
    """
    net=Net(8, (1,), 1, (), dropout=0.1, num_classes=10), text=Text(1, 8, 2, 24),
    condition=Condition(0.2, ("a {}", "the digit {}"))""",
).replace("import Config", "import Condition, Config, Text")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Six steps in one go."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "told.py").write_text(CONDITIONAL_TINY)
    run("train.py", folder / "told.py", "--save-every", 3, "--workdir", folder / "once", "--steps", 6)
    return folder


def test_a_told_run_goes_on_where_it_was(trained):
    shutil.copytree(trained / "once", trained / "twice")
    shutil.rmtree(trained / "twice" / "checkpoints" / "6")
    again = ("train.py", trained / "told.py", "--save-every", 3, "--workdir", trained / "twice", "--steps", 6)
    assert "continued from step 3" in run(*again, preview=False).stdout
    once, twice = (load_state(trained / name).tree for name in ("once", "twice"))
    assert_same_bytes(once, twice)
    assert "text" in once.params and "label" in once.params
    assert (trained / "once" / "samples" / "6.png").exists() and saved_steps(trained / "once") == [3, 6]


@pytest.mark.slow
def test_a_told_run_takes_the_same_steps_on_two_devices(trained):
    wide = ("--workdir", trained / "wide", "--steps", 6, "--devices", 2)
    run("train.py", trained / "told.py", *wide, preview=False)
    np.testing.assert_allclose(logged_losses(trained / "wide"), logged_losses(trained / "once"), atol=1e-5)


def test_asked_images_are_made_again_from_their_manifest(trained):
    out = trained / "out"
    shown = run(
        "sample.py", trained / "once", "--labels", "3,seven", "--text", "a three", "the digit seven", "--guidance", 2,
        "--num", 5, "--steps", 4, "--out", out,
    )  # fmt: skip
    assert "labels three, seven and texts a three; the digit seven" in shown.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["asked"] == {"labels": [3, 7], "texts": ["a three", "the digit seven"], "images": []}
    again = run("sample.py", trained / "once", "--verify", out / "manifest.json")
    assert "equal: all 5 images" in again.stdout
    (out / "manifest.json").write_text(json.dumps(manifest | {"asked": {"labels": ["3"]}}))
    refused = run("sample.py", trained / "once", "--verify", out / "manifest.json", status=2)
    assert "asked must hold lists of labels and texts" in refused.stderr
    unknown = run("sample.py", trained / "once", "--label", "ten", status=2)
    assert "no label 'ten': this run's are 0 to 9 (zero, one" in unknown.stderr
