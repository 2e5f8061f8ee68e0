"""What folders of diffusers say, field by field, as our networks and chains, and the way back."""

import dataclasses
import functools

import diffusers_files
import goldens_loader as goldens
import jax
import numpy as np
import pytest

from ddpm_jax import config as configs
from ddpm_jax.config import CompatOptions, Config, Net, Sampling
from ddpm_jax.convert import rules, run_folder
from ddpm_jax.convert.diffusers import names, network, scheduler
from ddpm_jax.model import network as make_network

ROOT = goldens.FOLDER.parents[1]


@functools.cache
def target():
    """The small network's parameters, as shapes."""
    read = network.from_diffusers(diffusers_files.CONFIG)
    return run_folder.param_shapes(Config(net=read.net), read.shape)


def output(unet_config: dict, tensors: dict) -> np.ndarray:
    """What our network gives for the small network's input, read from a configuration and tensors."""
    read = network.from_diffusers(unet_config)
    config = Config(net=read.net)
    wanted = run_folder.param_shapes(config, read.shape)
    params = rules.apply(names.rules(wanted), tensors, wanted)
    x, t = goldens.stored_array(diffusers_files.GOLDEN, "x"), goldens.stored_array(diffusers_files.GOLDEN, "t")
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(make_network(config, 3).apply)
        return np.asarray(apply({"params": params}, x, t.astype(np.int32) + 1))


# --- the published ones


@pytest.mark.parametrize(
    "unet_config, variance, file, mix",
    [
        (diffusers_files.CIFAR10, diffusers_files.DDPM_FIXED_LARGE, "cifar10", 1.0),
        (diffusers_files.CAT256, diffusers_files.DDPM_FIXED_SMALL, "lsun_church256", 0.0),
        (diffusers_files.CAT256, diffusers_files.DDPM_FIXED_SMALL, "celebahq256", 0.0),
    ],
    ids=["cifar10", "cat256", "celebahq256"],
)
def test_the_published_networks_are_those_of_the_recipes(unet_config, variance, file, mix):
    ours = configs.load(ROOT / "configs" / f"{file}.py")
    read = network.from_diffusers(unet_config)
    diffusion = scheduler.from_diffusers(variance, learned_variance=read.learned_variance)
    # dropout is of training, which the files no longer know
    assert read.net == dataclasses.replace(ours.net, dropout=0.0)
    assert (diffusion.schedule, diffusion.loss) == (ours.schedule, ours.loss)
    assert (diffusion.sampling.sampler, diffusion.sampling.steps, diffusion.sampling.clip) == ("ancestral", 1000, True)
    assert diffusion.sampling.variance_mix == mix == ours.sampling.variance_mix


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, count", [(diffusers_files.CIFAR10, 35_746_307), (diffusers_files.CAT256, 113_673_219)]
)
def test_the_published_networks_have_the_sizes_of_ours(config, count):
    """Which test_unet counts."""
    read = network.from_diffusers(config)
    leaves = jax.tree.leaves(run_folder.param_shapes(Config(net=read.net), read.shape))
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == count


# --- the names of tensors


def test_the_small_network_is_read_as_itself_and_gives_what_diffusers_gives():
    wanted = goldens.stored_array(diffusers_files.GOLDEN, "out")
    np.testing.assert_allclose(output(diffusers_files.CONFIG, diffusers_files.tensors()), wanted, rtol=1e-5, atol=1e-5)


def test_both_names_of_attentions_are_the_same_parameters():
    today, old = diffusers_files.tensors(), diffusers_files.with_names_of_2022(diffusers_files.tensors())
    assert "mid_block.attentions.0.query.weight" in old and "up_blocks.0.attentions.1.proj_attn.bias" in old
    one, other = (
        rules.apply(names.rules(target(), names.attention_names(tensors)), tensors, target())
        for tensors in (today, old)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_file_with_both_names_is_refused_by_the_tensors():
    mixed = diffusers_files.with_names_of_2022(diffusers_files.tensors())
    mixed["mid_block.attentions.0.to_q.weight"] = mixed.pop("mid_block.attentions.0.query.weight")
    with pytest.raises(ValueError) as raised:
        rules.apply(names.rules(target(), names.attention_names(mixed)), mixed, target())
    assert "1 tensors are missing: mid_block.attentions.0.query.weight (64, 64)" in str(raised.value)
    assert "1 tensors are unused: mid_block.attentions.0.to_q.weight (64, 64)" in str(raised.value)


# --- the traps: fields that change no shape


@pytest.mark.parametrize(
    "field, value, ours",
    [
        ("downsample_padding", 1, {"padding": "both"}),
        ("flip_sin_to_cos", True, {"time_order": "cos_sin"}),
        ("freq_shift", 0, {"time_shift": 0}),
        ("norm_eps", 1e-5, {"eps": 1e-5}),
    ],
)
def test_a_convention_is_read_and_a_missing_one_is_diffusers_own_and_not_ours(field, value, ours):
    compat = network.from_diffusers(diffusers_files.CONFIG).net.compat
    assert compat == CompatOptions()
    assert network.from_diffusers(diffusers_files.CONFIG | {field: value}).net.compat == dataclasses.replace(
        compat, **ours
    )
    without = {name: value for name, value in diffusers_files.CONFIG.items() if name != field}
    assert network.from_diffusers(without).net.compat == dataclasses.replace(compat, **ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, least",
    [
        ({"downsample_padding": 1}, 1e-2), ({"flip_sin_to_cos": True}, 1e-2), ({"freq_shift": 0}, 1e-3),
        ({"norm_eps": 1e-3}, 1e-4), ({"attention_head_dim": 8}, 1e-3), ({"norm_num_groups": 16}, 1e-3),
    ],
    ids=str,
)  # fmt: skip
def test_a_convention_that_is_another_gives_other_images(change, least):
    wanted = goldens.stored_array(diffusers_files.GOLDEN, "out")
    assert np.abs(output(diffusers_files.CONFIG | change, diffusers_files.tensors()) - wanted).max() > least


def test_head_dim_is_the_size_of_a_head_and_its_absence_means_eight():
    assert (
        network.from_diffusers(diffusers_files.CONFIG).net.head_channels == 0
        and network.from_diffusers(diffusers_files.CONFIG).net.heads == 1
    )
    without = {name: value for name, value in diffusers_files.CONFIG.items() if name != "attention_head_dim"}
    assert network.from_diffusers(without).net.head_channels == 8
    other = network.from_diffusers(diffusers_files.CONFIG | {"attention_head_dim": 16, "norm_num_groups": 16}).net
    assert (other.head_channels, other.heads, other.groups) == (16, 1, 16)


@pytest.mark.parametrize(
    "variance, mix", [("fixed_small", 0.0), ("fixed_small_log", 0.0), ("fixed_large", 1.0), (None, 0.0)]
)
def test_the_variance_is_read_and_a_missing_one_is_the_small_one(variance, mix):
    theirs = {name: value for name, value in diffusers_files.DDPM_FIXED_LARGE.items() if name != "variance_type"}
    theirs |= {"variance_type": variance} if variance else {}
    assert scheduler.from_diffusers(theirs, learned_variance=False).sampling.variance_mix == mix


@pytest.mark.parametrize("clip", [True, False])
def test_clipping_is_read(clip):
    assert (
        scheduler.from_diffusers(
            diffusers_files.DDPM_FIXED_LARGE | {"clip_sample": clip}, learned_variance=False
        ).sampling.clip
        is clip
    )


# --- other supported networks and schedulers


def test_scale_and_shift_with_changes_of_size_in_residual_blocks_are_read():
    unet_config = diffusers_files.CONFIG | {
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32, "attention_head_dim": 32, "out_channels": 6,
    }  # fmt: skip
    read = network.from_diffusers(unet_config)
    assert (read.net.resample, read.net.time_conditioning, read.net.head_channels) == ("block", "scale_shift", 32)
    assert read.learned_variance and read.net.attention_resolutions == (4,)


def test_a_learned_variance_is_a_hybrid_loss():
    diffusion = scheduler.from_diffusers(
        diffusers_files.DDPM_FIXED_LARGE | {"variance_type": "learned_range"}, learned_variance=True
    )
    assert diffusion.loss.kind == "hybrid"


def test_ddim_of_any_prediction_and_schedule_is_read():
    theirs = {
        "_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction",
        "timestep_spacing": "trailing", "num_train_timesteps": 500, "clip_sample": False,
    }  # fmt: skip
    diffusion = scheduler.from_diffusers(theirs, learned_variance=False)
    assert (diffusion.schedule.kind, diffusion.schedule.T, diffusion.loss.predicts) == ("cosine", 500, "v")
    assert diffusion.sampling == Sampling("ddim", steps=50, spacing="trailing", clip=False)
    assert (
        scheduler.from_diffusers(
            diffusers_files.DDPM_FIXED_LARGE | {"predict_epsilon": False}, learned_variance=False
        ).loss.predicts
        == "x0"
    )


# --- what is refused, by name


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name = 'UNet2DConditionModel': only 'UNet2DModel' is"),
        ({"new_field": 3}, "new_field = 3 is a field that is not known here"),
        ({"center_input_sample": True}, "center_input_sample = True: only False is supported, images in"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier': only 'positional' is supported"),
        ({"time_embedding_dim": 64}, "time_embedding_dim = 64: only None is supported"),
        ({"mid_block_type": None}, "mid_block_type = None: only 'UNetMidBlock2D' is supported"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor = 1.4: only 1 is supported"),
        ({"act_fn": "relu"}, "act_fn = 'relu': only 'silu' or 'swish' is supported"),
        ({"add_attention": False}, "add_attention = False: only True is supported"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep': only None is supported, labels of a table"),
        ({"num_class_embeds": 0}, "num_class_embeds = 0: at least 1, or None for no labels, is right"),
        ({"num_class_embeds": 2.0}, "num_class_embeds = 2.0 is not int or NoneType"),
        ({"downsample_padding": 2}, "downsample_padding = 2: only 0 or 1 is supported"),
        ({"flip_sin_to_cos": 1}, "flip_sin_to_cos = 1: only False or True is supported"),
        ({"freq_shift": 0.5}, "freq_shift = 0.5 is not int"),
        ({"freq_shift": 2}, "freq_shift = 2: only 0 or 1 is supported"),
        ({"norm_eps": 0.0}, "norm_eps = 0.0: only a positive number is supported"),
        ({"norm_eps": float("nan")}, "norm_eps = nan: only a positive number is supported"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift = 'spatial': only 'default'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups = None: only 32, as norm_num_groups"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups = 8: only 32"),
        ({"downsample_type": "fir"}, "downsample_type = 'fir': only 'conv' or 'resnet' is supported"),
        ({"upsample_type": "resnet"}, "sizes are changed by layers of their own or in residual blocks, the same"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "down_block_types holds 'SkipDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "not each other's mirror: a level attends both ways"),
        ({"up_block_types": ["AttnUpBlock2D"]}, "not each other's mirror"),
        ({"block_out_channels": [[32], 64]}, r"block_out_channels = [[32], 64]: multiples of the first"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels = [32, 48]: multiples of the first"),
        ({"block_out_channels": [32, 64, 64]}, "one for each of 2 blocks"),
        ({"block_out_channels": [], "down_block_types": [], "up_block_types": []}, "down_block_types is empty"),
        ({"block_out_channels": [32, 32]}, "norm_num_groups = 32, as many as block_out_channels = [32, 32]: each"),
        ({"norm_num_groups": 24}, "norm_num_groups = 24 does not divide block_out_channels = [32, 64]"),
        ({"in_channels": 0, "out_channels": 0}, "in_channels = 0: at least 1 is right"),
        ({"attention_head_dim": 24}, "attention_head_dim = 24 does not divide block_out_channels = [32, 64]"),
        ({"attention_head_dim": "8"}, "attention_head_dim = '8' is not int or NoneType"),
        ({"sample_size": None}, "sample_size = None: only multiples of 2 fit the blocks"),
        ({"sample_size": 9}, "sample_size = 9: only multiples of 2 fit the blocks"),
        ({"out_channels": 4}, "out_channels = 4: only in_channels = 3 or twice that is supported"),
        ({"layers_per_block": 0}, "layers_per_block = 0"),
        ({"dropout": 1.5}, "dropout = 1.5: only in [0, 1)"),
        ({"down_block_types": [["a"], 3]}, "down_block_types holds"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_network_that_is_not_supported_is_refused_by_the_name_of_its_field(change, message):
    with pytest.raises(ValueError) as raised:
        network.from_diffusers(diffusers_files.CONFIG | change)
    assert message in str(raised.value), raised.value


def test_all_fields_that_stand_in_the_way_are_named_at_once():
    with pytest.raises(ValueError) as raised:
        network.from_diffusers(diffusers_files.CONFIG | {"act_fn": "relu", "unheard_of": [], "freq_shift": "1"})
    assert all(name in str(raised.value) for name in ("act_fn", "unheard_of", "freq_shift"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name = 'PNDMScheduler': only DDPMScheduler and DDIMScheduler"),
        ({"new_field": 3}, "new_field = 3 is a field that is not known here"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid': only 'linear' or 'scaled_linear' or"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas = [0.1, 0.2]: only None is supported"),
        ({"variance_type": "fixed_large_log"}, "variance_type = 'fixed_large_log': only 'fixed_small'"),
        ({"variance_type": "learned"}, "variance_type = 'learned': only"),
        ({"_class_name": ["DDPMScheduler"]}, "_class_name = ['DDPMScheduler']: only DDPMScheduler and DDIMScheduler"),
        ({"variance_type": ["fixed_large"]}, "variance_type = ['fixed_large']: only 'fixed_small'"),
        ({"variance_type": None}, "variance_type = None: only 'fixed_small'"),
        ({"variance_type": "learned_range"}, "variance_type = 'learned_range', but the network gives as many channels"),
        ({"prediction_type": "flow"}, "prediction_type = 'flow': only 'epsilon' or 'sample' or 'v_prediction'"),
        ({"timestep_spacing": "log"}, "timestep_spacing = 'log': only 'leading' or 'trailing' or 'linspace'"),
        ({"steps_offset": 1}, "steps_offset = 1: only 0 is supported"),
        ({"thresholding": True}, "thresholding = True: only False is supported"),
        ({"clip_sample_range": 2.0}, "clip_sample_range = 2.0: only 1.0 is supported"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True, beta_end = 0.02: no signal is left at the"),
        (
            {"beta_end": 1},
            "beta_end = 1: no signal is left at the last time, and x_0 cannot be computed there from prediction_",
        ),
        ({"beta_start": 0.0}, "beta_start = 0.0, beta_end = 0.02: only positive numbers below 1 are supported"),
        ({"beta_end": float("nan")}, "beta_end = nan: only positive numbers below 1 are supported"),
        ({"num_train_timesteps": 0}, "num_train_timesteps = 0: at least 1 is right"),
        (
            {"num_train_timesteps": 1, "rescale_betas_zero_snr": True, "prediction_type": "sample"},
            "num_train_timesteps = 1: at least 2 is right",
        ),
        ({"clip_sample": 1}, "clip_sample = 1 is not bool"),
        ({"set_alpha_to_one": True}, "set_alpha_to_one = True is a field that is not known here"),
        ({"_class_name": "DDIMScheduler"}, "variance_type = 'fixed_large' is a field that is not known here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_chain_that_is_not_supported_is_refused_by_the_name_of_its_field(change, message):
    with pytest.raises(ValueError) as raised:
        scheduler.from_diffusers(diffusers_files.DDPM_FIXED_LARGE | change, learned_variance=False)
    assert message in str(raised.value), raised.value


def test_a_variance_that_the_scheduler_does_not_take_is_refused():
    with pytest.raises(ValueError, match="variance_type = 'fixed_large', but the network gives twice as many channels"):
        scheduler.from_diffusers(diffusers_files.DDPM_FIXED_LARGE, learned_variance=True)
    with pytest.raises(ValueError, match="a DDIMScheduler takes no learned variance"):
        scheduler.from_diffusers({"_class_name": "DDIMScheduler"}, learned_variance=True)
    with pytest.raises(ValueError, match="set_alpha_to_one = False: only True is supported"):
        scheduler.from_diffusers({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, learned_variance=False)


# --- the way back


@pytest.mark.parametrize(
    "net",
    [
        Net(32, (1, 2), 1, (8,), dropout=0.0),
        Net(32, (1, 2, 2), 2, (16, 4), heads=1, head_channels=16, dropout=0.1, groups=16),
        Net(32, (1, 2), 1, (1, 2), attention_by="factor", dropout=0.0, resample="block",
            time_conditioning="scale_shift",
            compat=CompatOptions(eps=1e-5, padding="both", time_order="cos_sin", time_shift=0)),
        Net(64, (1, 1), 1, (), heads=2, dropout=0.0),
    ],
    ids=["original", "heads", "openai", "two heads"],
)  # fmt: skip
def test_a_network_that_was_written_is_read_as_itself(net):
    config = Config(net=net)
    read = network.from_diffusers(network.to_diffusers(config, (16, 16, 1)))
    assert read.shape == (16, 16, 1) and not read.learned_variance
    if net.heads > 1 or net.attention_by == "factor":  # what is read is written in other words
        one, again = (run_folder.param_shapes(Config(net=n), (16, 16, 1)) for n in (net, read.net))
        assert jax.tree.map(lambda leaf: leaf.shape, one) == jax.tree.map(lambda leaf: leaf.shape, again)
    if net.heads > 1:  # so many heads of so many channels are as many of half of them
        net = dataclasses.replace(net, head_channels=net.channels // net.heads, heads=1)
    sizes = (
        tuple(16 // f for f in net.attention_resolutions) if net.attention_by == "factor" else net.attention_resolutions
    )
    assert read.net == dataclasses.replace(net, attention_by="size", attention_resolutions=sizes)


@pytest.mark.parametrize("kind", ["linear", "quad", "cosine"])
@pytest.mark.parametrize(
    "sampling", [Sampling(steps=60, variance_mix=0.0), Sampling("ddim", steps=50, spacing="leading", clip=False)]
)
def test_a_chain_that_was_written_is_read_as_itself(kind, sampling):
    config = Config(schedule=configs.Schedule(kind, T=60), loss=configs.Loss(predicts="v"), sampling=sampling)
    diffusion = scheduler.from_diffusers(scheduler.to_diffusers(config), learned_variance=False)
    assert (diffusion.schedule, diffusion.loss) == (config.schedule, config.loss)
    spacing = "leading" if sampling.spacing == "uniform" else sampling.spacing  # all 60 are all 60
    mix = sampling.variance_mix if sampling.sampler == "ancestral" else 1.0
    expected = dataclasses.replace(sampling, spacing=spacing, variance_mix=mix)
    assert diffusion.sampling == expected


def test_a_schedule_without_signal_at_its_end_is_read_and_written():
    theirs = diffusers_files.DDPM_FIXED_LARGE | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    diffusion = scheduler.from_diffusers(theirs, learned_variance=False)
    assert diffusion.schedule == configs.Schedule("linear", T=1000, zero_terminal_snr=True)
    config = Config(schedule=diffusion.schedule, loss=diffusion.loss, sampling=diffusion.sampling)
    assert scheduler.to_diffusers(config)["rescale_betas_zero_snr"] is True
    # betas that have no name there are the rescaled ones already
    other = dataclasses.replace(config, schedule=configs.Schedule("const", T=1000, zero_terminal_snr=True))
    written = scheduler.to_diffusers(other)
    assert written["rescale_betas_zero_snr"] is False and written["trained_betas"][-1] == 1


def test_labels_that_were_written_are_read_as_themselves():
    net = Net(32, (1, 2), 1, (8,), dropout=0.0, num_classes=10)
    for dropout, count in ((0.0, 10), (0.1, 11)):  # a network trained to do without has a row for none
        config = Config(net=net, condition=configs.Condition(dropout=dropout))
        written = network.to_diffusers(config, (16, 16, 1))
        assert written["num_class_embeds"] == count
        assert network.from_diffusers(written, null_label=network.null_label(config)).net == net
    with pytest.raises(ValueError, match="num_class_embeds = None: at least 2, the last of which stands for none"):
        network.from_diffusers(diffusers_files.CONFIG, null_label=True)


@pytest.mark.parametrize(
    "sampling, message",
    [
        (Sampling("ddim", steps=50, spacing="leading"), ["clip_sample = True"]),
        (Sampling("ddim", steps=50, spacing="leading", clip=False), []),
        (Sampling("ddim", steps=10, spacing="linspace", clip=False), ["every step of diffusers' DDIM is 100"]),
        (Sampling("ddim", steps=10, spacing="linspace"), ["clip_sample = True", "timestep_spacing = 'linspace'"]),
        (Sampling("ddim", steps=30, spacing="trailing", clip=False), ["every step of diffusers' DDIM is 33 "]),
        (Sampling("ddim", steps=50, spacing="trailing", clip=False), []),
        (Sampling("ddim", steps=1000, spacing="linspace", clip=False), []),
        (Sampling(spacing="trailing", variance_mix=1.0), ["the last step of diffusers' DDPM adds noise"]),
        (Sampling(spacing="trailing", variance_mix=0.0), []),
        (Sampling(spacing="leading", variance_mix=1.0), []),
    ],
    ids=str,
)  # fmt: skip
def test_where_diffusers_draws_other_images_is_noted(sampling, message):
    found = scheduler.differences(Config(sampling=sampling))
    assert len(found) == len(message) and all(part in line for part, line in zip(message, found, strict=True)), found


def test_a_learned_variance_that_was_written_is_read_as_itself():
    config = Config(net=Net(32, (1, 2), 1, (8,), dropout=0.0), loss=configs.Loss("hybrid", predicts="v"))
    written = network.to_diffusers(config, (16, 16, 1))
    read, diffusion = (
        network.from_diffusers(written),
        scheduler.from_diffusers(scheduler.to_diffusers(config), learned_variance=True),
    )
    assert (
        written["out_channels"] == 2 and read.learned_variance and read.shape == (16, 16, 1) and read.net == config.net
    )
    assert (diffusion.schedule, diffusion.loss) == (config.schedule, config.loss)
    assert scheduler.to_diffusers(config)["variance_type"] == "learned_range"


def test_schedules_that_diffusers_has_no_name_for_are_written_as_their_betas():
    config = Config(schedule=configs.Schedule("warmup10", T=50, beta_1=1e-4, beta_T=0.2), sampling=Sampling(steps=50))
    betas = np.asarray(scheduler.to_diffusers(config)["trained_betas"])
    np.testing.assert_allclose(betas, np.r_[np.linspace(1e-4, 0.2, 5), np.full(45, 0.2)], rtol=1e-12)


@pytest.mark.parametrize(
    "net, shape, message",
    [
        (Net(), (32, 32), "images (32, 32): there they are [H, W, C]"),
        (Net(), (28, 28, 1), "images (28, 28, 1): there, sides are multiples of 8"),
        (Net(resample_with_conv=False), (32, 32, 3), "net.resample_with_conv = False"),
        (Net(48), (32, 32, 3), "net.groups = 32: there they divide the channels of every level, and not [48]"),
        (
            Net(heads=2, attention_resolutions=(32, 16)),
            (32, 32, 3),
            "net.heads = 2 over [128, 256] channels: there, heads have one",
        ),
        (Net(compat=CompatOptions(time_scale=0.25)), (32, 32, 3), "net.compat.time_scale = 0.25"),
        (Net(compat=CompatOptions(time_dim=64)), (32, 32, 3), "net.compat.time_dim = 64: there it is"),
        (Net(kind="patch_transformer"), (32, 32, 3), "net.kind = 'patch_transformer': there, networks are U-Nets"),
    ],
)
def test_a_network_that_diffusers_cannot_express_is_refused_by_name(net, shape, message):
    with pytest.raises(ValueError) as raised:
        network.to_diffusers(Config(net=net), shape)
    assert message in str(raised.value), raised.value


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sampling": Sampling("unipc")}, "sampling.sampler = 'unipc': give --sampler ancestral or ddim"),
        (
            {"sampling": Sampling(variance_mix=0.5)},
            "sampling.variance_mix = 0.5: its variances are those of 0 and 1, give --variance-mix",
        ),
        ({"sampling": Sampling(threshold=99.5)}, "sampling.threshold = 99.5"),
        ({"sampling": Sampling(eps_scale=1.01)}, "sampling.eps_scale = 1.01: give --eps-scale 1"),
        ({"sampling": Sampling("ddim", steps=50)}, "sampling.spacing = 'uniform': give --spacing leading, trailing"),
        ({"sampling": Sampling("ddim", eta=0.5)}, "sampling.eta = 0.5: it is an argument of its pipeline's call"),
        (
            {"sampling": Sampling("ddim"), "loss": configs.Loss("hybrid")},
            "sampling.sampler = 'ddim' of a network with a",
        ),
        ({"loss": configs.Loss(predicts="mean")}, "loss.predicts = 'mean': its networks predict eps, x0 or v"),
        (
            {"schedule": configs.Schedule("cosine", offset=0.01)},
            "schedule.offset = 0.01, max_beta = 0.999: its cosine has",
        ),
    ],
    ids=str,
)
def test_a_chain_that_diffusers_cannot_express_is_refused_by_name(change, message):
    with pytest.raises(ValueError) as raised:
        scheduler.to_diffusers(Config(**change))
    assert message in str(raised.value), raised.value
