"""The original's own weights, by TensorFlow's names and by those of PyTorch's conversion of them."""

import functools

import jax
import numpy as np
import pytest
from networks import ORIGINAL, SHAPE, original_checkpoint, original_tree, original_variables
from tensorflow_files import needs_tensorflow, write_tensorflow_checkpoint

from ddpm_jax import pipeline
from ddpm_jax.convert import commands, options, original, rules, run_folder, tensor_files


@functools.cache
def target():
    return run_folder.param_shapes(ORIGINAL, SHAPE)


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
            for prefix in ("down_", "up_", "block_", "attn_"):
                path = path.replace(prefix, prefix[:-1] + ".")
        path = path.replace("temb.dense0", "temb.dense.0").replace("temb.dense1", "temb.dense.1")
        found[f"{path}.{'weight' if leaf in ('W', 'gamma') else 'bias'}"] = v
    return found


def test_tensorflows_variables_become_the_parameters_that_give_what_the_original_gives(tmp_path):
    """As test_unet has them, which compares what the network makes of them."""
    np.savez(tmp_path / "weights.npz", **original_checkpoint())
    found = original.from_tensors(tensor_files.read_tensors(tmp_path / "weights.npz"))
    assert found.ema is not None and found.step == 790_000
    assert len(found.unused) == 2 * len(original_variables()) + 3
    ema, raw = (rules.apply(found.rules(target()), tensors, target()) for tensors in (found.ema, found.raw))
    wanted = original_tree(original_variables())
    jax.tree.map(np.testing.assert_array_equal, ema, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + np.float32(0.25)), raw, wanted)


@needs_tensorflow
def test_a_tensorflow_checkpoint_becomes_a_run_that_names_its_files(tmp_path):
    write_tensorflow_checkpoint(tmp_path / "model.ckpt-790000", original_checkpoint())
    (tmp_path / "small.py").write_text(f"from ddpm_jax.config import *\nconfig = {ORIGINAL!r}\n")
    selected = options.FromOriginal(
        str(tmp_path / "model.ckpt-790000"), str(tmp_path / "small.py"), SHAPE, str(tmp_path / "run")
    )
    commands.from_original(selected)
    model = pipeline.Pipeline(tmp_path / "run", step=None, weights="ema", sampling={})
    assert model.step == 790_000
    assert sorted(model.origin["files"]) == [f"model.ckpt-790000.{part}" for part in ("data-00000-of-00001", "index")]
    wanted = rules.apply(original.tensorflow_rules(model.params), original_variables(), model.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, wanted))


def test_pytorchs_conversion_gives_the_same_parameters():
    held = in_pytorch(original_variables())
    # names of the published file
    for name in ("down.0.block.0.norm1.weight", "mid.attn_1.q.weight", "mid.block_2.conv1.bias", "temb.dense.1.weight"):
        assert name in held
    assert held["mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    wanted = rules.apply(original.tensorflow_rules(target()), original_variables(), target())
    for tensors in (held, {f"module.{name}": t for name, t in held.items()}):
        found = original.from_tensors(tensors)
        assert found.ema is None and found.step == 0
        params = rules.apply(found.rules(target()), found.raw, target())
        assert jax.tree.all(jax.tree.map(np.array_equal, params, wanted))
    back = rules.invert(original.torch_rules(target()), wanted)
    assert set(back) == set(held) and all(back[name].tobytes() == held[name].tobytes() for name in held)


def test_variables_of_another_network_are_refused_by_name():
    held = original_variables() | {"model/down_2/block_0/conv1/W": np.zeros((3, 3, 64, 64), np.float32)}
    del held["model/mid/attn_1/q/b"]
    found = original.from_tensors(held)
    with pytest.raises(ValueError) as raised:
        rules.apply(found.rules(target()), found.raw, target())
    assert "1 tensors are missing: model/mid/attn_1/q/b (64,)" in str(raised.value)
    assert "1 tensors are unused: model/down_2/block_0/conv1/W (3, 3, 64, 64)" in str(raised.value)


def test_averages_or_raw_ones_alone_stand_for_both():
    averages = {name: v for name, v in original_checkpoint().items() if name.endswith("Average")}
    for held in (averages, original_variables(), {f"{name}:0": v for name, v in original_variables().items()}):
        found = original.from_tensors(held)
        assert found.ema is None and set(found.raw) == set(original_variables())


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"not the original's weights.*but time_embed\.0\.weight"):
        original.from_tensors({"time_embed.0.weight": np.zeros(1)})
    with pytest.raises(ValueError, match="but nothing"):
        original.from_tensors({})
