"""Checkpoints of improved- and guided-diffusion: what their flags mean, their sizes, their tensors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from goldens_loader import Golden, precision, synthetic_net

from ddpm_jax import config as configs
from ddpm_jax import likelihood, losses, samplers
from ddpm_jax.config import CompatOptions, Config, Net
from ddpm_jax.convert import openai, rules
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build, check, empty_condition, has_learned_variance, network, noise_schedule
from ddpm_jax.models.unet import OPENAI


@functools.cache
def shapes(config: Config):
    """The tree of parameters, of a network for images of the least size that it takes."""
    net, side = network(config, 3), 2 ** (len(config.net.channel_multipliers) - 1)
    x, t = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(net.init, from_seed(0), x, t)["params"]


def size(model: openai.ModelSpec) -> int:
    """Parameters in the file, which has no row for no label."""
    target = shapes(model.config)
    zeros = {path: np.broadcast_to(np.zeros((), np.float32), leaf.shape) for path, leaf in flatten_dict(target).items()}
    found = model.rules(target)
    tensor_groups = (rule.to_theirs(*(zeros[path] for path in rule.paths)) for rule in found)
    assert {path for rule in found for path in rule.paths} == set(zeros)
    return sum(tensor.size for tensors in tensor_groups for tensor in tensors)


# --- the published checkpoints

# counted in the authors' own networks; in thousands of thousands where their papers round
SIZES = {
    "cifar10_uncond_50M_500K": 52_546_438,
    "imagenet64_uncond_100M_1500K": "121.1M",
    "imagenet64_cond_270M_250K": "273.0M",
    "lsun_uncond_100M_1200K_bs128": 113_676_678,
    "64x64_diffusion": "295.9M",
    "128x128_diffusion": "421.5M",
    "lsun_bedroom": "552.8M",
    "512x512_diffusion": "559.0M",
}


LONG = {"128x128_diffusion", "lsun_bedroom"}
"""Those of whose flags others know what decides the size."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SIZES]
)
def test_a_published_checkpoint_has_its_size(name):
    found, wanted = size(openai.published_model(name)), SIZES[name]
    assert (f"{found / 1e6:.1f}M" if isinstance(wanted, str) else found) == wanted


def test_others_have_the_networks_of_these():
    for one, other in [
        ("cifar10_uncond_vlb_50M_500K", "cifar10_uncond_50M_500K"),
        ("imagenet64_uncond_vlb_100M_1500K", "imagenet64_uncond_100M_1500K"),
        ("lsun_uncond_100M_2400K_bs64", "lsun_uncond_100M_1200K_bs128"),
        ("256x256_diffusion_uncond", "lsun_cat"),
        ("lsun_cat", "lsun_bedroom"),
        ("lsun_horse", "lsun_bedroom"),
    ]:
        nets = [openai.published_model(name).config.net for name in (one, other)]
        assert configs.differences(Config(net=nets[0]), Config(net=nets[1])) in ([], ["net.dropout: 0.0 -> 0.1"])


@pytest.mark.slow
def test_the_network_that_others_took_for_cifar10_has_its_size():
    flags = "--image_size 32 --channel_mult 1,2,2,2 --num_channels 128 --num_res_blocks 3 --learn_sigma True"
    flags += " --attention_resolutions 16,8 --num_head_channels 64 --resblock_updown True"
    assert size(openai.model_from_flags("guided", flags)) == 57_094_662


@pytest.mark.parametrize("name", openai.PRESETS)
def test_what_made_a_published_checkpoint_can_be_run(name):
    model = openai.published_model(name)
    check(model.config)
    assert has_learned_variance(model.config) and model.config.loss.predicts == "eps"
    side, factors = model.shape[0], model.config.net.attention_resolutions
    attended = {side // factor for factor in factors}
    # the papers: at 16 and 8, at 32, 16 and 8, and at 16 for LSUN by the first of the two
    improved = openai.PRESETS[name].family == "improved"
    assert attended == ({16} if "lsun_uncond" in name else {16, 8} if improved else {32, 16, 8})


def test_times_are_rescaled_for_4000_steps_but_for_the_network_with_labels():
    scale = {name: openai.published_model(name).config.net.compat.time_scale for name in openai.PRESETS}
    assert {name for name, value in scale.items() if value != 1} == {
        "cifar10_uncond_50M_500K", "cifar10_uncond_vlb_50M_500K", "imagenet64_uncond_100M_1500K",
        "imagenet64_uncond_vlb_100M_1500K",
    }  # fmt: skip
    assert scale["cifar10_uncond_50M_500K"] == 0.25
    T = {openai.published_model(name).config.schedule.T for name, value in scale.items() if value != 1}
    assert T == {openai.published_model("imagenet64_cond_270M_250K").config.schedule.T} == {4000}


# --- what flags mean, by golden data of theirs


@pytest.mark.parametrize(
    ("id", "flags"),
    [
        ("f/spaced_p_chain/linear_T1000_ddim10_learned_range_clip", "--timestep_respacing ddim10"),
        ("f/spaced_p_chain/cosine_T1000_20_learned_range_clip", "--noise_schedule cosine --timestep_respacing 20"),
    ],
)
def test_a_respaced_chain_with_learned_variance_by_its_flags_is_theirs(id, flags):
    """Schedule, kind of variance, clipping and times, as a config has them: any other of these gives other images."""
    config = openai.model_from_flags("improved", f"--learn_sigma True {flags}").config
    with precision("float64"):
        golden = Golden(id, "float64")
        model = build(config, (8, 8, 3), 256)
        schedule, times = model.schedule, model.times
        denoise = model.denoiser_of(synthetic_net(golden, schedule))
        by_time = np.zeros((schedule.T + 1, *golden["noise"].shape[1:]))
        by_time[times[:-1][::-1]] = golden["noise"]

        @jax.jit
        def final_state(x, by_time):
            sampler = samplers.ancestral(
                schedule, denoise, variance_mix=config.sampling.variance_mix, noise=lambda k, t, _: by_time[t]
            )
            return samplers.sample(samplers.image_keys(0, range(len(x))), sampler, x, times)

        golden.close("final", final_state(golden["x_T"], by_time))


@pytest.mark.parametrize(
    ("id", "flags"),
    [
        ("e/improved_linear_T1000/training_mse_eps_learned_range", "--rescale_learned_sigmas False"),
        (
            "e/improved_cosine_T50/training_rescaled_mse_eps_learned_range",
            "--noise_schedule cosine --diffusion_steps 50",
        ),
    ],
)
def test_the_bound_has_the_share_in_the_hybrid_loss_that_flags_give_it(id, flags):
    golden, config = Golden(id, "float32"), openai.model_from_flags("improved", f"--learn_sigma True {flags}").config
    schedule, t = noise_schedule(config), golden["t"] + 1

    @jax.jit
    def loss(x_start, output, noise):
        return losses.hybrid_loss(
            from_seed(0), schedule, lambda x, t: output, x_start,
            vlb_scale=config.loss.vlb_scale, decoder=likelihood.discretized_gaussian_tanh(256), t=t, eps=noise,
        )  # fmt: skip

    golden.close("loss", loss(golden["x_start"], golden["model_output"], golden["noise"]))


def test_the_linear_schedule_ends_at_the_same_noise_whatever_T_is():
    made = [openai.model_from_flags("improved", f"--diffusion_steps {T}").config for T in (1000, 4000)]
    ends = [noise_schedule(config).signal[-1] for config in made]
    np.testing.assert_allclose(ends[0], ends[1], rtol=0.05)  # but for how long the steps are
    assert openai.model_from_flags("improved", "--sigma_small True").config.sampling.variance_mix == 0
    assert openai.model_from_flags("improved", "").config.sampling.variance_mix == 1


@pytest.mark.parametrize(
    ("family", "flags", "text"),
    [
        ("improved", "--num_chanels 64", "unknown flag '--num_chanels'; did you mean '--num_channels'"),
        ("improved", "--resblock_updown True", "unknown flag '--resblock_updown'"),
        ("improved", "image_size 64", "unknown flag 'image_size'; did you mean '--image_size'"),
        ("improved", "--image_size", "'--image_size' is left over"),
        ("improved", "--image_size big", "--image_size must be int, got 'big'"),
        ("guided", "--class_cond maybe", "--class_cond must be bool, got 'maybe'"),
        ("improved", "--image_size 128", r"image_size = 128: improved-diffusion has networks for \[256, 64, 32\]"),
        ("guided", "--channel_mult 2,3", r"channel_mult = \(2, 3\): multiples of the first are supported"),
        ("guided", "--channel_mult 1,x", "--channel_mult must be positive integers with commas between, got '1,x'"),
        ("guided", "--num_heads_upsample 8", "num_heads_upsample = 8: only as many heads as on the way down"),
        ("guided", "--noise_schedule sqrt", "noise_schedule = 'sqrt': 'linear' and 'cosine' are theirs"),
        ("guided", "--timestep_respacing 10,20", "'10,20': sections are samplers.section_times"),
        ("guided", "--timestep_respacing fast", "timestep_respacing = 'fast': 'N' and 'ddimN' are supported"),
        ("guided", "--timestep_respacing 5000", "'5000': 1 to diffusion_steps = 1000 times are supported"),
        ("guided", "--timestep_respacing ddim999", "'ddim999': no stride over diffusion_steps = 1000 gives as many"),
        ("guided", "--num_heads 0", "num_heads = 0: at least 1 is right"),
        (
            "guided",
            "--num_heads 3",
            r"num_heads = 3 does not divide the channels of the levels, \[128, 256, 384, 512\]",
        ),
        ("guided", "--num_head_channels 48", "num_head_channels = 48 does not divide the channels"),
        ("improved", "--num_res_blocks -1 --diffusion_steps 0", "num_res_blocks = -1: .*; diffusion_steps = 0: at"),
        ("improved", "--dropout nan", r"dropout = nan: only in \[0, 1\)"),
        (
            "improved",
            "--diffusion_steps 20",
            "diffusion_steps = 20: the 'linear' noise_schedule, whose last beta is 20",
        ),
        ("guided", "--num_channels 32 --channel_mult 1,1 --use_scale_shift_norm False", "num_channels = 32: with as"),
        ("adm", "", "family must be one of 'improved', 'guided', got 'adm'"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_words(family, flags, text):
    with pytest.raises(ValueError, match=text):
        openai.model_from_flags(family, flags)


def test_checkpoints_that_there_are_not_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no published checkpoint 'cifar10'; there are: cifar10_uncond_50M_500K, "):
        openai.published_model("cifar10")


# --- tensors

TINY = Net(
    channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(2,),
    attention_by="factor", heads=2, num_classes=3,
    resample="block", time_conditioning="scale_shift", compat=CompatOptions(**OPENAI._asdict()),
)  # fmt: skip


def random_tensors(net: Net, order: openai.QKVOrder):
    target, rng = shapes(Config(net=net)), np.random.default_rng(0)
    found = openai.rules(target, net, order)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), target)
    drawn = {name: rng.normal(size=a.shape).astype("f") for name, a in sorted(rules.invert(found, zeros).items())}
    return target, found, drawn


@pytest.mark.parametrize("order", ["legacy", "new"])
@pytest.mark.parametrize("resample", ["layer", "block"])
def test_there_and_back_is_bit_equal_and_leaves_nothing_over(order, resample):
    net = Net(**{**vars(TINY), "resample": resample})
    target, found, drawn = random_tensors(net, order)
    params = rules.apply(found, drawn, target)
    back = rules.invert(found, params)
    assert back.keys() == drawn.keys()
    for name, tensor in drawn.items():
        np.testing.assert_array_equal(back[name], tensor)
    assert sum(a.size for a in drawn.values()) + 4 * net.channels == sum(a.size for a in jax.tree.leaves(params))


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_every_number_of_queries_keys_and_values_is_of_its_head(order):
    """Output c of head h and part p is written ..hpc: the queries of ours must be 0.., head by head, and so on."""
    target, found, drawn = random_tensors(TINY, order)
    head, part, channel = np.indices((2, 3, 32)) if order == "legacy" else np.indices((3, 2, 32))[[1, 0, 2]]
    written = (10_000 * head + 1000 * part + channel).reshape(-1).astype(np.float32)
    name = "middle_block.1.qkv"
    drawn[f"{name}.bias"], drawn[f"{name}.weight"] = written, np.broadcast_to(written[:, None, None], (192, 64, 1))
    attention = rules.apply(found, drawn, target)["mid"]["attn_1"]
    for p, leaf in enumerate(("q", "k", "v")):
        wanted = [10_000 * h + 1000 * p + c for h in range(2) for c in range(32)]
        np.testing.assert_array_equal(attention[leaf]["bias"], wanted)
        np.testing.assert_array_equal(attention[leaf]["kernel"], np.broadcast_to(wanted, (64, 64)))


def test_no_label_adds_nothing_and_cannot_be_given_back_once_it_does():
    target, found, drawn = random_tensors(TINY, "legacy")
    params = rules.apply(found, drawn, target)
    table = params["label"]["table"]["embedding"]
    np.testing.assert_array_equal(table[:-1], drawn["label_emb.weight"])
    assert not table[-1].any()
    table[-1, 5] = 1
    with pytest.raises(ValueError, match=r"embedding: the row of no label is not 0, and label_emb\.weight has"):
        rules.invert(found, params)
    model = openai.published_model("64x64_diffusion")
    assert model.config.condition.dropout == 0  # so that nobody samples, or guides, by what was never trained


def test_networks_that_theirs_cannot_be_are_refused():
    target = shapes(Config(net=TINY))
    with pytest.raises(ValueError, match="order must be 'legacy' or 'new', got 'old'"):
        openai.rules(target, TINY, "old")
    ours = Net(**{**vars(TINY), "compat": CompatOptions(), "groups": 8})
    with pytest.raises(ValueError) as refused:
        openai.rules(target, ours, "legacy")
    for message in ("eps = 1e-06 where 1e-05", "padding = 'end' where 'both'", "time_order = 'sin_cos' where 'cos_sin'",
                 "time_shift = 1 where 0", "net.groups = 8 where 32"):  # fmt: skip
        assert message in str(refused.value)
    text = Config(net=TINY, text=configs.Text(layers=1, width=8, heads=1, length=4))
    net, x = network(text, 3), jnp.zeros((1, 4, 4, 3))
    params = jax.eval_shape(net.init, from_seed(0), x, jnp.ones(1, int), empty_condition(text, 1, (4, 4, 3)))["params"]
    with pytest.raises(ValueError, match=r"leaves of ours have no rule in this format: .*pooled/proj/kernel"):
        rules.apply(openai.rules(params, TINY, "legacy"), {}, params)
