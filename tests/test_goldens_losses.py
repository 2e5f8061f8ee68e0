"""Likelihoods, bounds and training losses with their gradients against golden data."""

import jax
import jax.numpy as jnp
import numpy as np
from goldens_loader import (
    FIXED_MIX,
    MEAN_TYPE,
    Golden,
    absolute_variance,
    cases,
    close_step,
    exact,
    fixed_denoiser,
    network_denoiser,
    reverse_step,
    says,
    schedule,
    synthetic_net,
)

from ddpm_jax import gaussian, likelihood, losses
from ddpm_jax.gaussian import Gaussian

DECODER = likelihood.discretized_tanh(256)
"""The peers' decoder, and what they say in bits is said here in nats."""


def bits(nats: jax.Array, x0: jax.Array) -> jax.Array:
    """Nats per component [B, ...] -> bits per component [B]."""
    return likelihood.bits_per_dim(nats.sum(tuple(range(1, x0.ndim))), x0)


@cases("e/normal_kl")
def test_kl_of_two_normal_laws(golden: Golden):
    p = Gaussian(golden["mean1"], jnp.exp(golden["logvar1"]))
    golden.close("kl", gaussian.kl(p, Gaussian(golden["mean2"], jnp.exp(golden["logvar2"]))))
    golden.close("kl_std", gaussian.kl(p, Gaussian(jnp.zeros((), golden.dtype), jnp.ones((), golden.dtype))))


@cases("e/discretized_gaussian_log_likelihood")
def test_decoders(golden: Golden):
    x, p = golden["x"], Gaussian(golden["means"], jnp.exp(2 * golden["log_scales"]))
    wanted, scale = exact(golden.id, "log_prob"), np.exp(exact(golden.id, "log_scales"))
    tanh, ours = (np.asarray(jax.jit(decoder)(x, p)) for decoder in (DECODER, likelihood.discretized(256)))
    wanted_exact = exact(golden.id, "log_prob_exact_cdf")
    likely, unfloored = wanted > (-8 if golden.single else -18), wanted_exact > -690
    if golden.single:
        # a mean on the edge of a bin multiplies the rounding of the inputs by 1 / scale
        assert (np.abs(np.exp(tanh) - np.exp(wanted)) <= 3e-7 + 1e-7 / scale).all()
        golden.close("log_prob", tanh[likely], at=likely, rtol=0, atol=5e-3)
        # our exact CDF keeps its relative precision into the tails, but the distance to the mean, rounded at 1e-7
        # and divided by scale, enters log p with its own size: |d log p| = |z| 1e-7 / scale
        z = np.abs(exact(golden.id, "x") - exact(golden.id, "means")) / scale
        error = np.abs(ours - wanted_exact)
        assert (error <= 1e-5 + 1e-6 * np.abs(wanted_exact) + 1e-7 * (z + 2) / scale)[unfloored].all()
    else:
        golden.close("log_prob", tanh[likely], at=likely, rtol=0, atol=1e-6)
        golden.close("log_prob", tanh[~likely], at=~likely, rtol=0, atol=1e-3)
        golden.close("log_prob_exact_cdf", ours[unfloored], at=unfloored, rtol=1e-9, atol=1e-9)


@cases("e/*/prior_bpd")
def test_prior(golden: Golden):
    sched, x0 = schedule(golden), golden["x_start"]
    golden.close("prior_bpd", likelihood.bits_per_dim(likelihood.prior_kl(sched, x0, sched.T), x0))


def vb(golden: Golden, out: jax.Array) -> jax.Array:
    """The case's term of the bound in bits per component, [B]; the peers never clip a predicted mean."""
    sched, x0, t = schedule(golden), golden["x_start"], golden["t"] + 1
    clip = golden.args["clip_denoised"] and golden.args["model_mean_type"] != "xprev"
    denoise, mix = fixed_denoiser(golden, sched, out, clip, bound=True)
    found = denoise(gaussian.q_sample(sched, x0, t, golden["noise"]), t)
    first = likelihood.decoder_variance(sched)
    return bits(likelihood.term_given(sched, found, x0, t, t - 1, mix=mix, decoder=DECODER, first_var=first), x0)


@cases("e/*/vb_*")
def test_one_term_of_the_bound(golden: Golden):
    golden.close("vb", vb(golden, golden["model_output"]))


def training_losses(golden: Golden, out: jax.Array, scaled_bound: str) -> dict[str, jax.Array]:
    """The case's losses [B] by our own loss functions: "mse", "vb" (plain, in bits) and "hybrid".

    Args:
        scaled_bound: "MSE" or "RESCALED_MSE", how much of the bound "hybrid" adds.
    """
    sched, x0, variance = schedule(golden), golden["x_start"], golden.args["model_var_type"]
    learned = variance.startswith("learned")
    net = says(out)
    if variance == "learned":
        net = absolute_variance(sched, net, likelihood.decoder_variance(sched), bound=True)
    predicts = MEAN_TYPE[golden.args["model_mean_type"]]
    drawn = {"t": golden["t"] + 1, "eps": golden["noise"]}
    key = jax.random.key(0)
    found = {"mse": losses.denoising_loss(sched, net, x0, *drawn.values(), predicts=predicts, learned_variance=learned)}
    mix = FIXED_MIX.get(variance, 1.0)
    nats = losses.variational_loss(
        key, sched, net, x0, predicts=predicts, mix=mix, decoder=DECODER, learned_variance=learned, **drawn
    )
    found["vb"] = nats / (sched.T * np.log(2))
    if learned:
        # in bits, and as a part of T / 1000 or as it is
        scale = 1e-3 / np.log(2) if scaled_bound == "RESCALED_MSE" else 1 / (sched.T * np.log(2))
        found["hybrid"] = losses.hybrid_loss(
            jax.random.key(0), sched, net, x0, predicts=predicts, vlb_scale=scale, decoder=DECODER, **drawn
        )
    return found


@cases("e/*/training_*")
def test_training_loss_and_its_gradient(golden: Golden):
    kind, T = golden.args["loss_type"], schedule(golden).T
    learned = golden.args["model_var_type"].startswith("learned")

    @jax.jit
    def loss(out):
        found = training_losses(golden, out, kind)
        if kind in ("KL", "RESCALED_KL"):
            total = found["vb"] * (T if kind == "RESCALED_KL" else 1)
        else:
            total = found["hybrid"] if learned else found["mse"]
        return total.sum(), (total, found)

    gradient, (total, found) = jax.grad(loss, has_aux=True)(golden["model_output"])
    golden.close("loss", total)
    golden.close("grad_model_output", gradient)
    if "mse" in golden.names:
        golden.close("mse", found["mse"])
    if "vb" in golden.names:
        golden.close("vb", found["vb"] * (T / 1000 if kind == "RESCALED_MSE" else 1))


def test_simple_loss_is_the_denoising_loss_at_what_it_is_given():
    golden = Golden("e/improved_linear_T1000/training_mse_eps_fixedlarge", "float32")
    sched, x0, t, eps = schedule(golden), golden["x_start"], golden["t"] + 1, golden["noise"]
    net = says(golden["model_output"])
    golden.close("loss", losses.simple_loss(jax.random.key(0), sched, net, x0, t=t, eps=eps))


@cases("o/gd2/*")
def test_the_original(golden: Golden):
    sched = schedule(golden)
    mean_given, clip = golden.args["model_mean_type"] == "xprev", golden.args["clip_denoised"]
    mean, var, log_var, x0, sample = reverse_step(golden, sched, clip and not mean_given)
    if golden.args["model_var_type"] == "fixedlarge":
        # its variance at the first step is beta_1, its log variance that of the clipped posterior
        var = var.at[0].set(sched.noise[1] ** 2)
    close_step(golden, (mean, var, log_var, x0, sample), clip)
    golden.close("vb", vb(golden, golden["model_output_vb"]))
    found = training_losses(golden, golden["model_output_vb"], "MSE")
    if "loss_kl" in golden.names:
        golden.close("loss_kl", found["vb"])
    if "loss_mse" in golden.names:
        golden.close("loss_mse", found["mse"])


@cases("e/calc_bpd_loop/*", "o/calc_bpd_loop/*")
def test_the_bound_term_by_term(golden: Golden):
    sched, x0, noise = schedule(golden), golden["x_start"], golden["noise"]
    denoise, mix = network_denoiser(
        golden, sched, synthetic_net(golden, sched), golden.args["clip_denoised"], bound=True
    )
    first = likelihood.decoder_variance(sched)

    @jax.jit
    @jax.vmap
    def terms(t, eps):
        found = denoise(gaussian.q_sample(sched, x0, t, eps), t)
        nats = likelihood.term_given(sched, found, x0, t, t - 1, mix=mix, decoder=DECODER, first_var=first)
        x0_mse, eps_mse = (((a - b) ** 2).mean((1, 2, 3)) for a, b in ((found.x0, x0), (found.eps, eps)))
        return bits(nats, x0), x0_mse, eps_mse

    vb, x0_mse, eps_mse = (column.T for column in terms(jnp.arange(1, sched.T + 1), noise))
    prior = likelihood.bits_per_dim(likelihood.prior_kl(sched, x0, sched.T), x0)
    golden.close("total_bpd", vb.sum(1) + prior)
    golden.close("prior_bpd", prior)
    if "terms_bpd" in golden.names:
        golden.close("terms_bpd", vb)
        golden.close("mse", x0_mse)
    else:
        golden.close("vb", vb)
        golden.close("xstart_mse", x0_mse)
        golden.close("mse", eps_mse)


@cases("e/loss_second_moment_resampler")
def test_importance_sampling_of_times(golden: Golden):
    T, length, uniform = golden.args["T"], golden.args["history_per_term"], golden.args["uniform_prob"]
    t, seen, weights = golden["ts"] + 1, golden["losses"], exact(golden.id, "weights")

    def enter(history, pair):
        history = losses.record_losses(history, *(x[None] for x in pair))
        return history, losses.importance(history, uniform)

    empty = losses.loss_history(T, length)
    history, p = jax.lax.scan(enter, empty, (jnp.asarray(t), seen))
    wanted = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(p[golden["after"]], wanted, **golden.tolerance())
    golden.left_out("weights", "after")  # compared just now, after normalising
    # a batch enters in order, so that all at once comes to the same
    once = losses.record_losses(empty, jnp.asarray(t), seen)
    np.testing.assert_array_equal(once.losses, history.losses)
