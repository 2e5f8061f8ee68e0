"""Networks of diffusers' own making, and its own pipelines on ours: takes diffusers, and PyTorch with it."""

import importlib.util
import json
import pathlib
import warnings

import diffusers_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from ddpm_jax import config as configs
from ddpm_jax import pipeline, samplers
from ddpm_jax.model import empty_condition, network, noise_schedule
from ddpm_jax.programs import cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="takes diffusers and PyTorch"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]

SMALL = diffusers_files.CONFIG | {"sample_size": 16}
OPENAI = {"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5}
BIGGAN = OPENAI | {
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"], "downsample_type": "resnet",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"], "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32, "attention_head_dim": 16,
    "block_out_channels": [32, 64, 96], "out_channels": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
        import torch
    torch.manual_seed(0)
    return diffusers, torch


def made_there(theirs, folder: pathlib.Path, config: dict, scheduler: dict, *, safe: bool = True):
    """A network of theirs with random weights, none of them nothing, and the folder that it was saved to."""
    diffusers, torch = theirs
    net = diffusers.UNet2DModel.from_config(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    theirs_pipeline = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler.from_config(scheduler))
    theirs_pipeline.save_pretrained(folder, safe_serialization=safe)
    return net.eval()


def apart(theirs, net, run: pathlib.Path, batch: int = 2) -> float:
    """How far their network's output is from that of the run, as a share of their output's standard deviation.

    Of networks with labels, the batch's are the last.
    """
    _, torch = theirs
    model = pipeline.Pipeline(run, step=None, weights="ema", sampling={})
    count = net.config.num_class_embeds
    label = count and np.arange(count)[-batch:]
    x = np.random.default_rng(0).normal(size=(batch, *model.shape)).astype(np.float32)
    t = np.linspace(0, 999, batch).astype(np.int32)
    with torch.no_grad():
        labels = None if label is None else torch.from_numpy(label)
        output = net(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t), class_labels=labels).sample
        wanted = output.numpy().transpose(0, 2, 3, 1)
    apply = jax.jit(network(model.config, model.shape[-1]).apply)
    condition = empty_condition(model.config, batch, model.shape)
    condition = condition if label is None else condition._replace(label=label.astype(np.int32))
    found = np.asarray(apply({"params": model.params}, jnp.asarray(x), t + 1, condition))
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / wanted.std())


@pytest.mark.parametrize(
    "change",
    [
        {}, {"downsample_padding": 1}, {"flip_sin_to_cos": True}, {"freq_shift": 0}, {"norm_eps": 1e-2},
        {"attention_head_dim": 8}, {"norm_num_groups": 8},
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}, BIGGAN, {"num_class_embeds": 10},
    ],
    ids=lambda change: " ".join(change) if len(change) < 3 else "openai's",
)  # fmt: skip
def test_every_field_that_is_read_means_there_what_it_means_here(theirs, tmp_path, change):
    variance = {"variance_type": "learned_range"} if change.get("out_channels") == 6 else {}
    net = made_there(theirs, tmp_path / "there", SMALL | change, diffusers_files.DDPM_FIXED_LARGE | variance)
    assert cli.call(["convert", "from", "diffusers", str(tmp_path / "there"), "--workdir", str(tmp_path / "run")]) == 0
    assert apart(theirs, net, tmp_path / "run") < 2e-5
    # and the way back
    assert cli.call(["convert", "to", "diffusers", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    again = theirs[0].DDPMPipeline.from_pretrained(tmp_path / "back")
    one, two = net.state_dict(), again.unet.state_dict()
    assert set(one) == set(two) and all(theirs[1].equal(one[name], two[name]) for name in one)
    assert apart(theirs, again.unet.eval(), tmp_path / "run") < 2e-5


def test_a_file_of_pytorchs_is_read_too(theirs, tmp_path):
    net = made_there(theirs, tmp_path / "there", SMALL, diffusers_files.DDPM_FIXED_SMALL, safe=False)
    assert (tmp_path / "there" / "unet" / "diffusion_pytorch_model.bin").exists()
    assert cli.call(["convert", "from", "diffusers", str(tmp_path / "there"), "--workdir", str(tmp_path / "run")]) == 0
    assert apart(theirs, net, tmp_path / "run") < 2e-5


@pytest.mark.parametrize(
    "config, count, batch", [(diffusers_files.CIFAR10, 35_746_307, 2), (diffusers_files.CAT256, 113_673_219, 1)]
)
def test_the_published_networks_at_their_full_size(theirs, tmp_path, config, count, batch):
    net = made_there(theirs, tmp_path / "there", config, diffusers_files.DDPM_FIXED_LARGE)
    assert sum(parameter.numel() for parameter in net.parameters()) == count
    assert cli.call(["convert", "from", "diffusers", str(tmp_path / "there"), "--workdir", str(tmp_path / "run")]) == 0
    assert apart(theirs, net, tmp_path / "run", batch) < 2e-5


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A run of ours with random weights, and its folder there."""
    home = tmp_path_factory.mktemp("ours")
    config = configs.Config(
        net=configs.Net(32, (1, 2), 1, (8,), dropout=0.0),
        sampling=configs.Sampling(steps=1000, variance_mix=1.0, tile=4),
    )
    tiny_run.make_run(home / "run", config, shape=(16, 16, 3), levels=256)
    ddim = ["--sampler", "ddim", "--steps", "50", "--spacing", "leading"]
    assert cli.call(["convert", "to", "diffusers", str(home / "run"), str(home / "ddim"), *ddim]) == 0
    assert cli.call(["convert", "to", "diffusers", str(home / "run"), str(home / "ddpm")]) == 0
    return home


def test_their_ddim_pipeline_draws_our_images_from_our_noise(theirs, ours, monkeypatch):
    diffusers, torch = theirs
    sampling = {"sampler": "ddim", "steps": 50, "spacing": "leading"}
    model = pipeline.Pipeline(ours / "run", step=None, weights="ema", sampling=sampling)
    wanted = np.concatenate([part.x for part in model.draw(seed=3, start=0, num=4)])
    noise = np.asarray(samplers.initial_noise(samplers.image_keys(3, range(4)), model.shape))
    assert wanted.std() > 0.1

    theirs_pipeline = diffusers.DDIMPipeline.from_pretrained(ours / "ddim")
    assert isinstance(theirs_pipeline.scheduler, diffusers.DDIMScheduler)
    theirs_pipeline.set_progress_bar_config(disable=True)
    drawing = importlib.import_module(type(theirs_pipeline).__module__)
    start_noise = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    monkeypatch.setattr(drawing, "randn_tensor", lambda shape, **_: start_noise)
    found = theirs_pipeline(
        batch_size=4, num_inference_steps=50, use_clipped_model_output=True, output_type="np"
    ).images
    assert np.abs(found * 2 - 1 - wanted).max() < 1e-3
    # the trap: without the flag it goes on from the noise that the unclipped x_0 had
    other = theirs_pipeline(batch_size=4, num_inference_steps=50, output_type="np").images
    assert np.abs(other * 2 - 1 - wanted).max() > 1e-2


def test_their_ddpm_pipeline_opens_our_folder_and_draws(theirs, ours):
    diffusers, torch = theirs
    theirs_pipeline = diffusers.DDPMPipeline.from_pretrained(ours / "ddpm")
    theirs_pipeline.set_progress_bar_config(disable=True)
    assert (
        theirs_pipeline.scheduler.config.variance_type == "fixed_large" and theirs_pipeline.scheduler.config.clip_sample
    )
    images = theirs_pipeline(
        batch_size=2, generator=torch.manual_seed(0), num_inference_steps=3, output_type="np"
    ).images
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()


def test_the_variances_that_we_write_are_theirs(theirs, ours):
    """The variances of all reverse steps but the last, ours by `mix` and theirs by the name that we write for it."""
    from ddpm_jax import gaussian

    diffusers, _ = theirs
    schedule = noise_schedule(configs.Config())
    t = np.arange(2, 1001)
    for mix, kind in ((1.0, "fixed_large"), (0.0, "fixed_small")):
        written = json.loads((ours / "ddpm" / "scheduler" / "scheduler_config.json").read_text())
        there = diffusers.DDPMScheduler.from_config(written | {"variance_type": kind})
        theirs_at = np.array([float(there._get_variance(int(i) - 1)) for i in t])
        ours_at = np.asarray(gaussian.reverse_variance(schedule, t, t - 1, jnp.ones(t.shape), mix))
        # they subtract cumulated products in float32
        np.testing.assert_allclose(theirs_at, ours_at, rtol=2e-3)
