"""The U-Nets of improved-diffusion, guided-diffusion and diffusers: ours with their parameters, and their outputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_loader import Golden, cases, precision, stored_array
from networks import openai_net, param_shapes, tensors, unet

from ddpm_jax.convert import rules
from ddpm_jax.convert.diffusers import names as diffusers
from ddpm_jax.convert.openai import names as openai
from ddpm_jax.models.unet import UNet

CLOSE = {"float64": {"rtol": 1e-9, "atol": 1e-9}, "float32": {"rtol": 1e-5, "atol": 1e-5}}


def like(golden: Golden, net: UNet):
    """The shapes of the network's parameters, in the precision of the test."""
    # groups have no parameters, and a network of as many groups as channels is not made anew: it forgets the time
    made = param_shapes(net.clone(groups=8, dtype=jnp.float32), *stored_array(golden.id, "x").shape[1:-1])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, golden.dtype), made)


def compare(golden: Golden, net: UNet, rules_of, label=None) -> None:
    """Asserts that the peer's parameters in our network give its output and, in its layout, its gradients' norms.

    The gradients in float64 alone: in float32 they take half of the time again, and those of the original's network
    (test_unet) have been through the same layers.
    """
    x, t = golden["x"], golden["t"] + 1
    target = like(golden, net)
    found = rules_of(target)
    params = rules.apply(found, tensors(golden), target)

    def scalar(params):
        out = net.apply({"params": params}, x, t, label=label)
        return jnp.sum(out.reshape(-1) * jnp.cos(jnp.arange(out.size, dtype=out.dtype))), out

    close = CLOSE[str(golden.dtype)]
    golden.exempt("grad_norm_names")
    if golden.single:
        with jax.default_matmul_precision("highest"):
            golden.close("out", jax.jit(scalar)(params)[1], **close)
        golden.exempt("grad_norms")
        return
    (_, out), grads = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    golden.close("out", out, **close)
    theirs = rules.invert(found, jax.device_get(grads))
    names = [str(name) for name in stored_array(golden.id, "grad_norm_names")]
    assert sorted(names) == sorted(theirs)
    norms = np.stack([np.linalg.norm(theirs[name].reshape(-1)) for name in names])
    golden.close("grad_norms", norms, **close)


@cases("h/improved_open_*", "h/guided_open_*")
def test_openais_networks_with_their_parameters(golden: Golden):
    net, order = openai_net(golden.args), "new" if golden.args.get("use_new_attention_order") else "legacy"
    compare(golden, unet(golden, net), lambda target: openai.rules(target, net, order), golden["y"])


TRAPS = {
    "the padding of strided convolutions": ("h/improved_open_0", {"padding": "end"}),
    "the order of the time's embedding": ("h/improved_open_0", {"time_order": "sin_cos"}),
    "its frequencies": ("h/improved_open_0", {"time_shift": 1}),
    "the normalisations' eps": ("h/improved_open_0", {"eps": 1e-6}),
    "the times' scale": ("h/improved_open_0", {"time_scale": 0.25}),
    "the order of heads, queries, keys and values": ("h/improved_open_1", {}),
}
"""What peers have got wrong: no shape changes and there is no error."""


@pytest.mark.slow
@pytest.mark.parametrize("trap", TRAPS)
def test_each_convention_is_one_that_shows(trap):
    """By ten thousand times what the tests above allow in float64, so none of these can be wrong there unseen."""
    id, changes = TRAPS[trap]
    with precision("float64"):
        golden = Golden(id, "float64")
        net = openai_net(golden.args)
        other = dataclasses.replace(net, compat=dataclasses.replace(net.compat, **changes))
        x, t = golden["x"], golden["t"] + 1
        target = like(golden, unet(golden, other))
        order = "legacy" if changes else "new"
        params = rules.apply(openai.rules(target, net, order), tensors(golden), target)
        out = jax.jit(functools.partial(unet(golden, other).apply, label=golden["y"]))({"params": params}, x, t)
        assert np.abs(np.asarray(out) - stored_array(id, "out")).max() > (1e-5 if "eps" in changes else 1e-2)


@cases("h/diffusers_open")
def test_diffusers_network_with_its_parameters(golden: Golden):
    args = golden.args
    assert "AttnDownBlock2D" in args["down_block_types"]
    widths = args["block_out_channels"]
    attended = [args["sample_size"] // 2**i for i, kind in enumerate(args["down_block_types"]) if "Attn" in kind]
    net = UNet(
        widths[0], tuple(width // widths[0] for width in widths), args["layers_per_block"], tuple(attended),
        dtype=golden.dtype,
    )  # fmt: skip
    compare(golden, net, diffusers.rules)
