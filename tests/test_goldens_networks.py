"""The U-Nets of improved-diffusion, guided-diffusion and diffusers: their own outputs and gradients, with our network."""

import jax
import jax.numpy as jnp
import numpy as np
from goldens_loader import Golden, cases, exact

from ddpm_jax.config import Config, Conventions, Net, objects
from ddpm_jax.convert import rules
from ddpm_jax.convert.diffusers import names as diffusers
from ddpm_jax.convert.openai import names as openai
from ddpm_jax.unet import OPENAI, UNet

PREFIX = "param:"
CLOSE = {"float64": {"rtol": 1e-9, "atol": 1e-9}, "float32": {"rtol": 1e-5, "atol": 1e-5}}


def tensors(golden: Golden) -> dict[str, np.ndarray]:
    """The peer's parameters by the peer's names, in the precision of the test."""
    found = (name for name in golden.names if name.startswith(PREFIX))
    return {name.removeprefix(PREFIX): np.asarray(golden[name]) for name in found}


def compare(golden: Golden, net: UNet, rules_of, label=None) -> None:
    """Asserts that the peer's parameters in our network give its output and, in its layout, its gradients' norms."""
    x, t = golden["x"], golden["t"] + 1
    # groups have no parameters, and a network of as many groups as channels is not made anew: it forgets the time
    shapes = jax.eval_shape(net.clone(groups=8).init, jax.random.key(0), x, t)["params"]
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, golden.dtype), shapes)
    found = rules_of(target)
    params = rules.apply(found, tensors(golden), target)

    def scalar(params):
        out = net.apply({"params": params}, x, t, label=label)
        return jnp.sum(out.reshape(-1) * jnp.cos(jnp.arange(out.size, dtype=out.dtype))), out

    with jax.default_matmul_precision("highest"):
        (_, out), grads = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    close = CLOSE[str(golden.dtype)]
    golden.close("out", out, **close)
    theirs = rules.invert(found, jax.tree.map(np.asarray, grads))
    names = [str(name) for name in exact(golden.id, "grad_norm_names")]
    golden.left_out("grad_norm_names")
    assert sorted(names) == sorted(theirs)
    norms = np.stack([np.linalg.norm(theirs[name].reshape(-1)) for name in names])
    # norms that are exactly 0, such as those of a time that is forgotten, are sums of numbers of the others' size
    rounding = {"atol": 1e-7 * norms.max()} if golden.single else {}
    golden.close("grad_norms", norms, **{**close, **rounding})


@cases("h/improved_open_*", "h/guided_open_*")
def test_openais_networks_with_their_parameters(golden: Golden):
    args = golden.args
    net = Net(
        channels=args["model_channels"],
        multipliers=tuple(args["channel_mult"]),
        blocks=args["num_res_blocks"],
        attention_at=tuple(args["attention_resolutions"]),
        attention_by="factor",
        heads=args.get("num_heads", 1),
        head_channels=args.get("num_head_channels", 0),
        dropout=args["dropout"],
        time_joins="scale_shift" if args["use_scale_shift_norm"] else "add",
        resample_by="block" if args.get("resblock_updown") else "layer",
        num_classes=args["num_classes"],
        conventions=Conventions(**OPENAI._asdict()),
    )
    unet = objects.network(Config(net=net), args["out_channels"]).unet.clone(dtype=golden.dtype, parent=None)
    order = "new" if args.get("use_new_attention_order") else "legacy"
    compare(golden, unet, lambda target: openai.rules(target, net, order), golden["y"])


@cases("h/diffusers_open")
def test_diffusers_network_with_its_parameters(golden: Golden):
    args = golden.args
    assert "AttnDownBlock2D" in args["down_block_types"]
    widths = args["block_out_channels"]
    attended = [args["sample_size"] // 2**i for i, kind in enumerate(args["down_block_types"]) if "Attn" in kind]
    net = UNet(
        widths[0], [width // widths[0] for width in widths], args["layers_per_block"], attended, dtype=golden.dtype
    )
    compare(golden, net, diffusers.rules)
