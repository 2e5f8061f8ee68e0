"""Forward-mode derivatives of the U-Net: the divergence of a prediction, estimated with one `jax.jvp` a probe.

    python examples/forward_mode.py

The U-Net's own gradients take less time and memory than JAX's, but exist in reverse mode only; `forward_mode=True`
uses JAX's.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ddpm_jax import UNet, keys


def divergence(net, x, t, probes):
    """The mean over random signs v [n, *x.shape] of v' J v, J being the derivative of net at x: its trace, [B].

    Hutchinson's estimate, which likelihoods by the probability flow use (Song et al., arXiv:2011.13456, appendix D.2).
    """

    def of_probe(v):
        _, along = jax.jvp(lambda x: net(x, t), (x,), (v,))
        return (v * along).sum(range(1, x.ndim))

    return jax.lax.map(of_probe, probes)


def main(num=200, channels=8):
    """Returns the estimates [num, 1] of a random network's divergence at one image, and the divergence itself."""
    net = UNet(channels, (1, 2), num_res_blocks=1, attention_resolutions=(), groups=4, out_channels=1)
    init_key, weight_key, image_key, probe_key = jax.random.split(keys.from_seed(0), 4)
    x, t = jax.random.normal(image_key, (1, 8, 8, 1)), jnp.full(1, 500)
    shapes, structure = jax.tree.flatten(jax.eval_shape(net.init, init_key, x, t))
    drawn = zip(jax.random.split(weight_key, len(shapes)), shapes, strict=True)
    params = jax.tree.unflatten(structure, [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in drawn])

    plain = partial(net.clone(forward_mode=True).apply, params)
    found = jax.jit(partial(divergence, plain))(x, t, jax.random.rademacher(probe_key, (num, *x.shape), jnp.float32))
    rows = jax.jit(jax.jacrev(lambda x: net.apply(params, x, t).reshape(-1)))(x)  # by the network's own gradients
    exact = float(jnp.trace(rows.reshape(x.size, x.size)))
    print(f"divergence {found.mean():.2f} ± {found.std() / num**0.5:.2f} by {num} probes, exactly {exact:.2f}")
    return found, exact


if __name__ == "__main__":
    main()
