"""The original's own weights, by TensorFlow's names and by those of PyTorch's conversion of them."""

import goldens_loader as goldens
import jax
import numpy as np
import pytest
from tensorflow_files import in_tensorflow, with_tensorflow

from ddpm_jax import runs
from ddpm_jax.config import Config, Net, objects
from ddpm_jax.convert import commands, files, folder, original, rules

UNET = "h/original_unet_A"
ARGS = goldens.MANIFEST[UNET]["args"]
CONFIG = Config(
    net=Net(ARGS["ch"], tuple(ARGS["ch_mult"]), ARGS["num_res_blocks"], tuple(ARGS["attn_resolutions"]), dropout=0.0)
)
SHAPE = (16, 16, 3)


def variables() -> dict[str, np.ndarray]:
    """The golden network's, by the names that its graph gave them."""
    found = (name for name in goldens.MANIFEST[UNET]["arrays"] if name.startswith("var:"))
    return {name.removeprefix("var:"): goldens.exact(UNET, name).astype(np.float32) for name in found}


def checkpoint() -> dict[str, np.ndarray]:
    """As a checkpoint of the original holds them: raw ones other than their averages, and Adam's."""
    held = {f"{name}/ExponentialMovingAverage": v for name, v in variables().items()}
    for name, v in variables().items():
        held |= {name: v + np.float32(0.25), f"{name}/Adam": v * 0, f"{name}/Adam_1": v * 0}
    return held | {
        "global_step": np.int64(790_000), "beta1_power": np.float32(0), "beta2_power": np.float32(0),
    }  # fmt: skip


def in_pytorch(held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As the published conversion has them: by its modules' names, kernels [out, in, height, width], and everything on
    pixels a convolution of 1."""
    found = {}
    for name, v in held.items():
        *modules, leaf = name.removeprefix("model/").split("/")
        if leaf == "W" and v.ndim == 4:
            v = v.transpose(3, 2, 0, 1)
        elif leaf == "W":
            linear = modules[-1] in ("dense0", "dense1", "temb_proj")
            v = v.T if linear else v.T[:, :, None, None]
        path = ".".join(modules)
        if modules[0] != "mid":
            for word in ("down_", "up_", "block_", "attn_"):
                path = path.replace(word, word[:-1] + ".")
        path = path.replace("temb.dense0", "temb.dense.0").replace("temb.dense1", "temb.dense.1")
        found[f"{path}.{'weight' if leaf in ('W', 'gamma') else 'bias'}"] = v
    return found


def test_tensorflows_variables_give_what_the_original_gives(tmp_path):
    np.savez(tmp_path / "weights.npz", **checkpoint())
    found = original.source(files.read(tmp_path / "weights.npz"))
    assert found.both and found.step == 790_000
    assert len(found.aside) == 2 * len(variables()) + 3
    target = folder.target(CONFIG, SHAPE)
    ema, raw = (rules.apply(found.rules(target), tensors, target) for tensors in (found.ema, found.raw))
    assert rules.flatten(raw)[("conv_in", "bias")][0] == rules.flatten(ema)[("conv_in", "bias")][0] + 0.25

    with jax.default_matmul_precision("highest"):
        x, t = goldens.exact(UNET, "x"), goldens.exact(UNET, "t")
        out = jax.jit(objects.network(CONFIG, 3).apply)({"params": ema}, x, t + 1)
    np.testing.assert_allclose(out, goldens.exact(UNET, "out"), rtol=1e-5, atol=1e-5)


@with_tensorflow
def test_a_tensorflow_checkpoint_becomes_a_run_that_names_its_files(tmp_path):
    in_tensorflow(tmp_path / "model.ckpt-790000", checkpoint())
    (tmp_path / "small.py").write_text(f"from ddpm_jax.config import *\nconfig = {CONFIG!r}\n")
    options = commands.FromOriginal(
        str(tmp_path / "model.ckpt-790000"), str(tmp_path / "small.py"), SHAPE, str(tmp_path / "run")
    )
    commands.from_original(options)
    model = runs.Model(tmp_path / "run", step=None, weights="ema", sampling={})
    assert model.step == 790_000
    assert sorted(model.origin["files"]) == [f"model.ckpt-790000.{part}" for part in ("data-00000-of-00001", "index")]
    wanted = rules.apply(original.tensorflow_rules(model.params), variables(), model.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, wanted))


def test_pytorchs_conversion_gives_the_same_parameters():
    held = in_pytorch(variables())
    # names of the published file
    for name in ("down.0.block.0.norm1.weight", "mid.attn_1.q.weight", "mid.block_2.conv1.bias", "temb.dense.1.weight"):
        assert name in held
    assert held["mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    target = folder.target(CONFIG, SHAPE)
    wanted = rules.apply(original.tensorflow_rules(target), variables(), target)
    for tensors in (held, {f"module.{name}": t for name, t in held.items()}):
        found = original.source(tensors)
        assert not found.both and found.step == 0
        params = rules.apply(found.rules(target), found.ema, target)
        assert jax.tree.all(jax.tree.map(np.array_equal, params, wanted))
    back = rules.invert(original.torch_rules(target), wanted)
    assert set(back) == set(held) and all(back[name].tobytes() == held[name].tobytes() for name in held)


def test_variables_of_another_network_are_refused_by_name():
    held = variables() | {"model/down_2/block_0/conv1/W": np.zeros((3, 3, 64, 64), np.float32)}
    del held["model/mid/attn_1/q/b"]
    found = original.source(held)
    target = folder.target(CONFIG, SHAPE)
    with pytest.raises(ValueError) as raised:
        rules.apply(found.rules(target), found.raw, target)
    assert "1 tensors are missing: model/mid/attn_1/q/b (64,)" in str(raised.value)
    assert "1 tensors are unused: model/down_2/block_0/conv1/W (3, 3, 64, 64)" in str(raised.value)


def test_averages_or_raw_ones_alone_stand_for_both():
    averages = {name: v for name, v in checkpoint().items() if name.endswith("Average")}
    for held in (averages, variables(), {f"{name}:0": v for name, v in variables().items()}):
        found = original.source(held)
        assert not found.both and set(found.raw) == set(found.ema) == set(variables())


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"not the original's weights.*but time_embed\.0\.weight"):
        original.source({"time_embed.0.weight": np.zeros(1)})
    with pytest.raises(ValueError, match="but nothing"):
        original.source({})
