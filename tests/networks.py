"""Small networks with parameters and programs that are made once, and golden networks' arguments as our options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run
from goldens_loader import MANIFEST, Golden, stored_array

from ddpm_jax.config import CompatOptions, Config, Net
from ddpm_jax.keys import from_seed
from ddpm_jax.model import network
from ddpm_jax.models.unet import OPENAI, UNet

TINY = UNet(
    channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.5, out_channels=2
)
"""The original's kind: every option has its default."""

ADM = UNet(
    channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(2,), dropout=0.5,
    out_channels=2, groups=8, num_classes=3, head_channels=8, attention_by="factor",
    time_conditioning="scale_shift", resample="block", compat=OPENAI,
)  # fmt: skip
"""guided-diffusion's kind: every option is another one than the original's."""


@functools.cache
def jitted_apply(net):
    """`net.apply`, compiled once for each kind of arguments that any test has; gives numpy's arrays."""
    compiled = jax.jit(net.apply)
    return lambda *args, **conditions: jax.device_get(compiled(*args, **conditions))


@functools.cache
def inputs(net, *sides: int, batch: int = 4):
    """Images, times and parameters for `net`: to be read and never written."""
    x = normal(batch, *sides, net.out_channels)
    t = 1 + 97 * np.arange(batch, dtype=np.int32)
    return x, t, tiny_run.random_params(net, x, t)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers of float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def image_keys(n: int, seed: int = 0):
    """One key per image."""
    return jax.random.split(from_seed(seed), n)


def add_kernel_axis(params):
    """The same weights in the middle plane of kernels of one axis more, which are 0 elsewhere."""

    def plane(leaf):
        return np.stack([0 * leaf, leaf, 0 * leaf]) if leaf.ndim > 2 else leaf

    return jax.tree.map(plane, jax.device_get(params))


def assert_equal_slices_are_one(net) -> None:
    """Asserts that the network sees sequences of equal slices, of one axis more and of two, as it sees one of them."""
    x, t, params = inputs(net, 4)
    flat = jitted_apply(net)(params, x, t)
    assert np.std(flat) > 0.01
    image = jitted_apply(net)(add_kernel_axis(params), np.repeat(x[:, None], 8, axis=1), t)
    np.testing.assert_allclose(image, np.repeat(flat[:, None], 8, axis=1), atol=1e-4)
    volume = np.repeat(np.repeat(x[:1, None, None], 8, axis=2), 4, axis=1)
    found = jitted_apply(net)(add_kernel_axis(add_kernel_axis(params)), volume, t[:1])
    np.testing.assert_allclose(found, np.repeat(image[:1, None], 4, axis=1), atol=1e-4)


@functools.cache
def param_shapes(net, *sides: int, channels: int = 3):
    """The tree of a network's parameters for images of these sides, as shapes and dtypes."""
    x, t = jax.ShapeDtypeStruct((1, *sides, channels), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(net.init, from_seed(0), x, t)["params"]


def assert_gradients_agree(f, args, along, *, near=1e-6, rtol=1e-6) -> None:
    """Asserts that a function's first derivatives are those of differences, and the second ones those of the first.

    In float64, in one program.  The second derivatives are taken in reverse and forward.

    Args:
        f: (*args) -> a number.
        along: a direction for each argument.
    """

    @jax.jit
    def derivatives(args, along):
        def moved(step):
            return tuple(a + step * d for a, d in zip(args, along, strict=True))

        def directional_derivative(*args):
            return sum(jnp.vdot(g, d) for g, d in zip(gradient(*args), along, strict=True))

        gradient = jax.grad(f, range(len(args)))
        first_order = directional_derivative(*args), (f(*moved(near)) - f(*moved(-near))) / (2 * near)
        ahead, behind = gradient(*moved(near)), gradient(*moved(-near))
        differences = tuple((a - b) / (2 * near) for a, b in zip(ahead, behind, strict=True))
        second_order = jax.grad(directional_derivative, range(len(args)))(*args), jax.jvp(gradient, args, along)[1]
        return first_order, second_order, differences

    (directional_derivative, difference), (reverse, forward), differences = derivatives(tuple(args), tuple(along))
    np.testing.assert_allclose(directional_derivative, difference, rtol=rtol)
    for i, (a, b, c) in enumerate(zip(reverse, forward, differences, strict=True)):
        size = np.abs(a).max()
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * size, err_msg=f"argument {i}, twice")
        np.testing.assert_allclose(a, c, rtol=rtol, atol=rtol * size, err_msg=f"argument {i}, against differences")


def convolution_by_definition(x, kernel, stride: int, before: int) -> np.ndarray:
    """Sums of products, over images padded with zeros: `before` in front of each axis, and enough behind."""
    axes = x.ndim - 2
    sides = [-(-side // stride) for side in x.shape[1:-1]]
    x = np.pad(x, ((0, 0), *((before, 3) for _ in range(axes)), (0, 0)))
    total = 0
    for offsets in np.ndindex((3,) * axes):
        window = x[:, *(slice(start, start + stride * n, stride) for start, n in zip(offsets, sides, strict=True))]
        total = total + window @ kernel[offsets]
    return total


# --- golden networks

LEAF_NAMES = {"W": "kernel", "b": "bias", "gamma": "scale", "beta": "bias"}


def original_tree(tensors) -> dict:
    """The original's TF variables, "scope/a/b/W", as our tree {"a": {"b": {"kernel": ...}}}."""
    tree: dict = {}
    for name, tensor in tensors.items():
        _, *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[LEAF_NAMES[leaf]] = tensor
    return tree


def tensors(golden: Golden, prefix: str = "param:") -> dict[str, np.ndarray]:
    """A golden network's parameters by the peer's names, in the precision of the test."""
    found = (name for name in golden.names if name.startswith(prefix))
    return {name.removeprefix(prefix): stored_array(golden.id, name).astype(golden.dtype) for name in found}


def openai_net(args) -> Net:
    """The fields of ours that the arguments of a golden case of OpenAI's ask for."""
    return Net(
        channels=args["model_channels"],
        channel_multipliers=tuple(args["channel_mult"]),
        num_res_blocks=args["num_res_blocks"],
        attention_resolutions=tuple(args["attention_resolutions"]),
        attention_by="factor",
        heads=args.get("num_heads", 1),
        head_channels=args.get("num_head_channels", 0),
        dropout=args["dropout"],
        time_conditioning="scale_shift" if args["use_scale_shift_norm"] else "add",
        resample="block" if args.get("resblock_updown") else "layer",
        num_classes=args["num_classes"],
        compat=CompatOptions(**OPENAI._asdict()),
    )


def unet(golden: Golden, net: Net) -> UNet:
    """A golden case's network, in the precision of the test."""
    return network(Config(net=net), golden.args["out_channels"]).net.clone(dtype=golden.dtype, parent=None)


ORIGINAL_GOLDEN = "h/original_unet_A"
_ARGS = MANIFEST[ORIGINAL_GOLDEN]["args"]
SHAPE = (16, 16, 3)
ORIGINAL = Config(
    net=Net(
        _ARGS["ch"], tuple(_ARGS["ch_mult"]), _ARGS["num_res_blocks"], tuple(_ARGS["attn_resolutions"]), dropout=0.0
    )
)
"""The original's golden network, for images of `SHAPE`."""


def original_variables() -> dict[str, np.ndarray]:
    """Its variables, by the names that its graph gave them."""
    found = (name for name in MANIFEST[ORIGINAL_GOLDEN]["arrays"] if name.startswith("var:"))
    return {name.removeprefix("var:"): stored_array(ORIGINAL_GOLDEN, name).astype(np.float32) for name in found}


def original_checkpoint() -> dict[str, np.ndarray]:
    """As a checkpoint of the original holds them: raw ones other than their averages, and Adam's."""
    held = {f"{name}/ExponentialMovingAverage": v for name, v in original_variables().items()}
    for name, v in original_variables().items():
        held |= {name: v + np.float32(0.25), f"{name}/Adam": v * 0, f"{name}/Adam_1": v * 0}
    return held | {
        "global_step": np.int64(790_000), "beta1_power": np.float32(0), "beta2_power": np.float32(0),
    }  # fmt: skip


def assert_a_thousandth(one, many, atol: float) -> None:
    """1024 times the gradients `one` are `many`, up to bfloat16 and `atol` of the largest.

    Kernels are left out, as jax 0.12 itself sums products in bfloat16 on a CPU; not those of positions ("where"), whose
    sum over images comes first.
    """
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one))
    for (path, of_one), of_many in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True):
        name = jax.tree_util.keystr(path)
        if "kernel" not in name or "where" in name:
            np.testing.assert_allclose(of_many / 1024, of_one, rtol=0.02, atol=atol * largest, err_msg=name)
