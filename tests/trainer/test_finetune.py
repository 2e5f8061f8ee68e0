"""`train.py --init-from`: a run that begins from another run's parameters, on other images."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from run_programs import run

from ddpm_jax import checkpoint, config, pipeline, trainer, training
from ddpm_jax.config import flags
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build, empty_condition, network, optimizer

NET = config.Net(16, (1, 2), 1, (4,), dropout=0.0, groups=8)
SMALL = dataclasses.replace(
    tiny_run.CONFIG, steps=4, batch=8, log_every=1, sample_every=0, save_every=2, keep=10, net=NET,
    optim=config.Optim(learning_rate=1e-3, warmup=2, ema_decay=0.5),
    sampling=config.Sampling(steps=4, tile=2, num=2), evaluation=config.Evaluation(images=2, strata=1),
)  # fmt: skip


def parameters(like: config.Config, shape, seed=0):
    shapes = jax.eval_shape(build(like, shape, 17).init, from_seed(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def names(tree) -> list[str]:
    return [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in jax.tree.leaves_with_path(tree)]


# --- what is taken and what is made anew


def test_all_parameters_are_taken_by_a_network_of_the_same_form():
    theirs = parameters(SMALL, (8, 8, 1), seed=1)
    found = trainer.transfer_params(parameters(SMALL, (8, 8, 1)), theirs)
    assert found.reinitialised == {} and found.num_transferred == len(jax.tree.leaves(theirs))
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params, theirs))


def test_other_channels_renew_the_first_and_the_last_convolution_alone():
    own, theirs = parameters(SMALL, (8, 8, 3)), parameters(SMALL, (8, 8, 1), seed=1)
    found = trainer.transfer_params(own, theirs)
    assert found.reinitialised == {
        "conv_in": "(3, 3, 1, 16) there and (3, 3, 3, 16) here", "conv_out": "(1,) there and (3,) here",
    }  # fmt: skip
    equal = jax.tree.map(lambda a, b: a.shape == b.shape and np.array_equal(a, b), found.params, theirs)
    changed = [name for name, same in zip(names(found.params), jax.tree.leaves(equal), strict=True) if not same]
    # a bias that would fit goes with its kernel
    assert changed == ["conv_in/bias", "conv_in/kernel", "conv_out/bias", "conv_out/kernel"]
    np.testing.assert_array_equal(found.params["conv_in"]["bias"], own["conv_in"]["bias"])


def test_a_learned_variance_renews_the_last_convolution():
    hybrid = dataclasses.replace(SMALL, loss=config.Loss("hybrid"))
    found = trainer.transfer_params(parameters(hybrid, (8, 8, 1)), parameters(SMALL, (8, 8, 1)))
    assert list(found.reinitialised) == ["conv_out"]


def test_labels_and_texts_begin_as_nothing_in_a_network_that_was_told_none():
    conditional = dataclasses.replace(
        SMALL, net=dataclasses.replace(NET, num_classes=3), text=config.Text(layers=1, width=8, heads=2, length=6)
    )
    net, key = network(conditional, 1), from_seed(0)
    own = jax.jit(build(conditional, (8, 8, 1), 17).init)(key)
    theirs = parameters(SMALL, (8, 8, 1), seed=1)
    found = trainer.transfer_params(own, theirs)
    assert {"label", "pooled", "text", "mid/cross_1"} <= set(found.reinitialised)
    assert set(found.reinitialised.values()) == {"which is not there"}
    x, t = np.ones((2, 8, 8, 1), np.float32), np.array([3, 9], np.int32)
    condition = empty_condition(conditional, 2, (8, 8, 1))._replace(
        label=np.array([0, 2]), tokens=np.full((2, 6), 65, np.uint8)
    )
    before = jax.jit(network(SMALL, 1).apply)({"params": theirs}, x, t)
    after = jax.jit(net.apply)({"params": found.params}, x, t, condition)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)  # whatever it is told


def test_a_patch_transformer_takes_other_channels_labels_and_texts():
    net = config.Net(kind="patch_transformer", transformer=config.PatchTransformer(2, 16, 1, 2))
    ours, text = dataclasses.replace(SMALL, net=net), config.Text(layers=1, width=8, heads=2)
    theirs = parameters(ours, (4, 4, 1))
    more = dataclasses.replace(ours, net=dataclasses.replace(net, num_classes=3), text=text)
    found = trainer.transfer_params(parameters(more, (8, 6, 3), seed=1), theirs)
    assert set(found.reinitialised) == {"patch_in", "patch_out", "label", "pooled", "text", "block_0/cross_0"}
    np.testing.assert_array_equal(found.params["block_0"]["q"]["kernel"], theirs["block_0"]["q"]["kernel"])


def test_other_labels_renew_the_table_of_labels():
    ten, three = (dataclasses.replace(SMALL, net=dataclasses.replace(NET, num_classes=n)) for n in (10, 3))
    found = trainer.transfer_params(parameters(three, (8, 8, 1)), parameters(ten, (8, 8, 1)))
    assert found.reinitialised == {"label": f"{(11, 64)} there and {(4, 64)} here"}


def test_a_network_that_does_not_fit_is_refused_by_the_names_of_its_leaves():
    wide = dataclasses.replace(SMALL, net=dataclasses.replace(NET, channel_multipliers=(1, 3)))
    with pytest.raises(ValueError) as raised:
        trainer.transfer_params(parameters(wide, (8, 8, 1)), parameters(SMALL, (8, 8, 1)), ". Say so")
    message = str(raised.value)
    assert "down_1/attn_0/q/kernel is (32, 32) there and (48, 48) here" in message
    assert re.search(r"; and \d+ more\. Say so$", message)
    conditional = dataclasses.replace(SMALL, net=dataclasses.replace(NET, num_classes=3))
    with pytest.raises(ValueError, match=re.escape("label/table/embedding (4, 64) is there alone")):
        trainer.transfer_params(parameters(SMALL, (8, 8, 1)), parameters(conditional, (8, 8, 1)))


# --- whole beginnings


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run to begin from, images of another size with other channels, and the config's file."""
    home = tmp_path_factory.mktemp("begin")
    tiny_run.make_run(home / "source", SMALL, levels=256)
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    np.savez(home / "mine.npz", train=images)
    other = dataclasses.replace(SMALL, data=config.Data(f"npz:{home / 'mine.npz'}"))
    text = config.to_json(dataclasses.replace(other, net=dataclasses.replace(NET, attention_resolutions=(8,))))
    (home / "mine.py").write_text(
        f"import json\nfrom ddpm_jax.config import from_dict\nconfig = from_dict(json.loads('''{text}'''))\n"
    )
    return home


def init_from(home, net=NET, shape=(16, 16, 3), which=None, **change):
    other = dataclasses.replace(SMALL, net=net, **change)
    which = which or flags.InitFrom(str(home / "source"))
    return trainer.init_from_run(build(other, shape, 17), from_seed(5), which)


def test_a_beginning_has_the_others_averages_a_fresh_optimizer_and_says_what_is_new(home, capsys):
    net = dataclasses.replace(NET, attention_resolutions=(8,), dropout=0.25)
    state, provenance = init_from(home, net, schedule=dataclasses.replace(SMALL.schedule, T=30))
    source = pipeline.Pipeline(home / "source", step=None, weights="ema", sampling={})
    for tree in (state.params, state.ema):
        np.testing.assert_array_equal(
            tree["mid"]["attn_1"]["q"]["kernel"], source.params["mid"]["attn_1"]["q"]["kernel"]
        )
    fresh = training.init(state.params, optimizer(SMALL))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state.opt_state, fresh.opt_state)) and state.step == 0
    message, about = capsys.readouterr().out, provenance["begun_from"]
    assert f"from {home / 'source'}, step 3, ema weights" in message
    for part in (
        "reinitialised: conv_in, (3, 3, 1, 16) there and (3, 3, 3, 16) here",
        "reinitialised: conv_out,",
        "different: schedule.T: 20 -> 30",
        "different: net.dropout: 0.0 -> 0.25",
    ):
        assert part in message, (part, message)
    assert about["fingerprint"] == source.fingerprint and about["image"] == [8, 8, 1]
    assert list(about["renewed"]) == ["conv_in", "conv_out"]
    raw, _ = init_from(home, net, which=flags.InitFrom(str(home / "source"), "raw", 3))
    assert not np.array_equal(raw.params["mid"]["attn_1"]["q"]["kernel"], state.params["mid"]["attn_1"]["q"]["kernel"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"channels": 32}, "net.channels is 16 there and 32 here"),
        ({"channel_multipliers": (1, 1)}, "net.channel_multipliers is (1, 2) there and (1, 1) here"),
        ({"groups": 4}, "net.groups is 8 there and 4 here"),
        ({"compat": config.CompatOptions(padding="both")}, "net.compat.padding is 'end' there and 'both' here"),
        (vars(config.Net(kind="patch_transformer")), "source: net.kind is 'unet' there and 'patch_transformer' here"),
        ({"attention_resolutions": (4,)}, "smaller by 2: --net.attention-by factor --net.attention-resolutions 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_networks_of_other_options_are_refused_by_name(home, change, message):
    with pytest.raises(ValueError) as raised:
        init_from(home, dataclasses.replace(dataclasses.replace(NET, attention_resolutions=(8,)), **change))
    assert message in str(raised.value), raised.value


def test_images_of_other_dimensions_are_refused(home):
    with pytest.raises(ValueError, match=re.escape("images have shape (8, 8, 1) there and (4, 8, 8, 1) here")):
        init_from(home, shape=(4, 8, 8, 1))


def test_a_run_under_way_does_not_begin_from_elsewhere():
    begun = {"begun_from": {"run": "/runs/one"}, "origin": {"format": "diffusers"}, "step": 3}
    for which in (flags.InitFrom(), flags.InitFrom("/runs/one")):
        assert trainer.provenance(begun, which, "mine") == {
            "begun_from": begun["begun_from"],
            "origin": begun["origin"],
        }
    with pytest.raises(ValueError, match="mine already has checkpoints and began from /runs/one: give a new"):
        trainer.provenance(begun, flags.InitFrom("/runs/two"), "mine")
    with pytest.raises(ValueError, match="mine already has checkpoints and began from no other run"):
        trainer.provenance({"step": 3}, flags.InitFrom("/runs/one"), "mine")


def test_a_run_goes_on_from_there_and_then_needs_the_other_no_more(home):
    def trained(workdir, status=0):
        arguments = (home / "mine.py", "--workdir", home / workdir, "--init-from", home / "gone")
        return run("train.py", *arguments, preview=False, status=status)

    shutil.copytree(home / "source", home / "gone")
    assert "reinitialised: conv_in" in trained("straight").stdout
    shutil.copytree(home / "straight", home / "halves")
    shutil.rmtree(home / "halves" / "checkpoints" / "4")
    shutil.rmtree(home / "gone")
    assert "continued from step 2" in trained("halves").stdout  # the same command
    with (
        checkpoint.Checkpoints(home / "straight" / "checkpoints", read_only=True) as straight,
        checkpoint.Checkpoints(home / "halves" / "checkpoints", read_only=True) as halves,
    ):
        one, two = straight.meta(4), halves.meta(4)
    assert one["fingerprint"] == two["fingerprint"]
    assert one["begun_from"] == two["begun_from"] and one["begun_from"]["run"] == str(home / "gone")

    assert "holds no checkpoints: it is not the folder of a run" in trained("new", status=2).stderr
    assert not (home / "new").exists()
