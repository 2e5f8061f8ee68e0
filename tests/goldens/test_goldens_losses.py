"""Likelihoods, bounds and training losses with their gradients against golden data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from goldens_loader import (
    Golden,
    Peer,
    absolute_variance,
    cases,
    close_step,
    constant_net,
    net_of,
    peer,
    reverse_step,
    schedule,
    stored_array,
)

from ddpm_jax import gaussian, likelihood, losses
from ddpm_jax.gaussian import Gaussian
from ddpm_jax.keys import from_seed

DECODER = likelihood.discretized_gaussian_tanh(256)
"""The peers' decoder, and what they say in bits is said here in nats."""


def bits(nats: jax.Array, x0: jax.Array) -> jax.Array:
    """Nats per component [B, ...] -> bits per component [B]."""
    return likelihood.bits_per_dim(nats.sum(tuple(range(1, x0.ndim))), x0)


@cases("e/normal_kl")
def test_kl_of_two_normal_laws(golden: Golden):
    p, q = (Gaussian(golden["mean" + i], np.exp(golden["logvar" + i])) for i in "12")
    golden.close("kl", gaussian.kl(p, q))
    golden.close("kl_std", gaussian.kl(p, Gaussian(np.zeros((), golden.dtype), np.ones((), golden.dtype))))


@cases("e/discretized_gaussian_log_likelihood")
def test_decoders(golden: Golden):
    x, p = golden["x"], Gaussian(golden["means"], np.exp(2 * golden["log_scales"]))
    wanted, scale = stored_array(golden.id, "log_prob"), np.exp(stored_array(golden.id, "log_scales"))
    both = jax.jit(lambda x, p: [decoder(x, p) for decoder in (DECODER, likelihood.discretized_gaussian(256))])
    tanh, ours = map(np.asarray, both(x, p))
    wanted_exact = stored_array(golden.id, "log_prob_exact_cdf")
    likely, unfloored = wanted > (-8 if golden.single else -18), wanted_exact > -690
    if golden.single:
        # a mean on the edge of a bin multiplies the rounding of the inputs by 1 / scale
        assert (np.abs(np.exp(tanh) - np.exp(wanted)) <= 3e-7 + 1e-7 / scale).all()
        golden.close("log_prob", tanh[likely], index=likely, rtol=0, atol=5e-3)
        # our exact CDF keeps its relative precision into the tails, but the distance to the mean, rounded at 1e-7
        # and divided by scale, enters log p with its own size: |d log p| = |z| 1e-7 / scale
        z = np.abs(stored_array(golden.id, "x") - stored_array(golden.id, "means")) / scale
        error = np.abs(ours - wanted_exact)
        assert (error <= 1e-5 + 1e-6 * np.abs(wanted_exact) + 1e-7 * (z + 2) / scale)[unfloored].all()
    else:
        golden.close("log_prob", tanh[likely], index=likely, rtol=0, atol=1e-6)
        golden.close("log_prob", tanh[~likely], index=~likely, rtol=0, atol=1e-3)
        golden.close("log_prob_exact_cdf", ours[unfloored], index=unfloored, rtol=1e-9, atol=1e-9)


@cases("e/*/prior_bpd")
def test_prior(golden: Golden):
    sched, x0 = schedule(golden), golden["x_start"]
    prior = jax.jit(lambda x0: likelihood.bits_per_dim(likelihood.prior_kl(sched, x0, sched.T), x0))
    golden.close("prior_bpd", prior(x0))


@functools.cache
def bound_term(kind: Peer):
    """(schedule, mix, x0, t, noise, out) -> the term of the bound in bits per component, [B]."""

    @jax.jit
    def vlb_term(sched, mix, x0, t, noise, out):
        found = kind.denoiser(sched, constant_net(out), for_vlb=True)(gaussian.q_sample(sched, x0, t, noise), t)
        var_1 = likelihood.decoder_variance(sched)
        return bits(
            likelihood.vlb_term_from_estimate(
                sched, found, x0, t, t - 1, variance_mix=mix, decoder=DECODER, decoder_var=var_1
            ),
            x0,
        )

    return vlb_term


def vb(golden: Golden, out) -> jax.Array:
    """The case's term of the bound; the peers never clip a predicted mean."""
    clip = golden.args["clip_denoised"] and golden.args["model_mean_type"] != "xprev"
    kind, mix = peer(golden, clip)
    return bound_term(kind)(schedule(golden), mix, golden["x_start"], golden["t"] + 1, golden["noise"], out)


@cases("e/*/vb_*")
def test_one_term_of_the_bound(golden: Golden):
    golden.close("vb", vb(golden, golden["model_output"]))


@functools.cache
def training_loss(kind: Peer, trained: str):
    """(schedule, mix, x0, t, eps, out, scale) -> gradient of the sum of "mse", "vb" or "hybrid", and all of them, [B].

    "vb" is plain, in bits; scale is how much of the bound in nats "hybrid" adds to "mse".
    """
    learned = kind.variance != "fixed"

    def losses_of(out, sched, mix, x0, t, eps, scale):
        net, key, drawn = constant_net(out), from_seed(0), {"t": t, "eps": eps}
        if kind.variance == "learned":
            net = absolute_variance(sched, net, likelihood.decoder_variance(sched), for_vlb=True)
        options = {"predicts": kind.predicts, "learned_variance": learned}
        found = {"mse": losses.denoising_loss(sched, net, x0, t, eps, **options)}
        if trained != "mse":
            nats = losses.variational_loss(key, sched, net, x0, variance_mix=mix, decoder=DECODER, **options, **drawn)
            found["vb"] = nats / (sched.T * np.log(2))
        if trained == "hybrid":
            found["hybrid"] = losses.hybrid_loss(
                key, sched, net, x0, predicts=kind.predicts, vlb_scale=scale, decoder=DECODER, **drawn
            )
        return found[trained].sum(), found

    @jax.jit
    def gradient(sched, mix, x0, t, eps, out, scale):
        return jax.grad(losses_of, has_aux=True)(out, sched, mix, x0, t, eps, scale)

    return gradient


def train(golden: Golden, trained: str, out, scaled_bound: str = "MSE"):
    """The case's gradient and losses.

    Args:
        scaled_bound: "MSE" or "RESCALED_MSE", how much of the bound "hybrid" adds: in bits, as it is, or a part of T /
            1000 of it.
    """
    sched, (kind, mix) = schedule(golden), peer(golden, False)
    scale = 1e-3 / np.log(2) if scaled_bound == "RESCALED_MSE" else 1 / (sched.T * np.log(2))
    inputs = golden["x_start"], golden["t"] + 1, golden["noise"], out, np.asarray(scale, golden.dtype)
    return jax.tree.map(np.asarray, training_loss(kind, trained)(sched, mix, *inputs))


@cases("e/*/training_*")
def test_training_loss_and_its_gradient(golden: Golden):
    kind, T = golden.args["loss_type"], schedule(golden).T
    of_the_bound = kind in ("KL", "RESCALED_KL")
    learned = golden.args["model_var_type"].startswith("learned")
    trained = "vb" if of_the_bound else "hybrid" if learned else "mse"
    gradient, found = train(golden, trained, golden["model_output"], kind)
    factor = np.asarray(T if kind == "RESCALED_KL" else 1, golden.dtype)
    golden.close("loss", factor * found[trained])
    golden.close("grad_model_output", factor * gradient)
    if "mse" in golden.names:
        golden.close("mse", found["mse"])
    if "vb" in golden.names:
        golden.close("vb", found["vb"] * np.asarray(T / 1000 if kind == "RESCALED_MSE" else 1, golden.dtype))


def test_simple_loss_is_the_denoising_loss_at_what_it_is_given():
    golden = Golden("e/improved_linear_T1000/training_mse_eps_fixedlarge", "float32")
    sched, x0, t, eps = schedule(golden), golden["x_start"], golden["t"] + 1, golden["noise"]
    net = constant_net(golden["model_output"])
    loss = jax.jit(lambda key: losses.simple_loss(key, sched, net, x0, t=t, eps=eps))
    golden.close("loss", loss(from_seed(0)))


@cases("o/gd2/*")
def test_the_original(golden: Golden):
    sched = schedule(golden)
    mean_given, clip = golden.args["model_mean_type"] == "xprev", golden.args["clip_denoised"]
    mean, var, log_var, x0, sample = reverse_step(golden, sched, clip and not mean_given)
    if golden.args["model_var_type"] == "fixedlarge":
        # its variance at the first step is beta_1, its log variance that of the clipped posterior
        var = np.concatenate([np.full_like(var[:1], sched.noise[1]) ** 2, var[1:]])
    close_step(golden, (mean, var, log_var, x0, sample), clip)
    golden.close("vb", vb(golden, golden["model_output_vb"]))
    if "loss_kl" in golden.names:
        golden.close("loss_kl", train(golden, "vb", golden["model_output_vb"])[1]["vb"])
    if "loss_mse" in golden.names:
        golden.close("loss_mse", train(golden, "mse", golden["model_output_vb"])[1]["mse"])


@functools.cache
def bound_terms(kind: Peer, function: str):
    """The terms of the bound in bits [B, T], the errors of x_0 and of eps there, and the prior [B]."""

    @functools.partial(jax.jit, static_argnums=2)
    def found(sched, numbers, variance, mix, x0, noise):
        denoise = kind.denoiser(sched, net_of(function, variance, numbers, sched), for_vlb=True)
        var_1 = likelihood.decoder_variance(sched)

        def vlb_term(t, eps):
            found = denoise(gaussian.q_sample(sched, x0, t, eps), t)
            nats = likelihood.vlb_term_from_estimate(
                sched, found, x0, t, t - 1, variance_mix=mix, decoder=DECODER, decoder_var=var_1
            )
            x0_mse, eps_mse = (((a - b) ** 2).mean((1, 2, 3)) for a, b in ((found.x0, x0), (found.eps, eps)))
            return bits(nats, x0), x0_mse, eps_mse

        prior = likelihood.bits_per_dim(likelihood.prior_kl(sched, x0, sched.T), x0)
        return *(column.T for column in jax.vmap(vlb_term)(jnp.arange(1, sched.T + 1), noise)), prior

    return found


@cases("e/calc_bpd_loop/*", "o/calc_bpd_loop/*")
def test_the_bound_term_by_term(golden: Golden):
    sched, x0, (kind, mix) = schedule(golden), golden["x_start"], peer(golden, golden.args["clip_denoised"])
    found = bound_terms(kind, golden.args["denoise_fn"])
    numbers = {name: np.asarray(value, golden.dtype) for name, value in golden.args["denoise_params"].items()}
    found = map(np.asarray, found(sched, numbers, golden.args.get("model_var_type", ""), mix, x0, golden["noise"]))
    vb, x0_mse, eps_mse, prior = found
    golden.close("total_bpd", vb.sum(1, dtype=golden.dtype) + prior)
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
    t, recorded_losses, weights = golden["ts"] + 1, golden["losses"], stored_array(golden.id, "weights")

    def enter(history, pair):
        history = losses.record_losses(history, *(x[None] for x in pair))
        return history, losses.importance_probabilities(history, uniform)

    @jax.jit
    def both(t, recorded_losses):
        empty = losses.empty_loss_history(T, length)
        return jax.lax.scan(enter, empty, (t, recorded_losses)), losses.record_losses(empty, t, recorded_losses)

    (history, p), once = jax.tree.map(np.asarray, both(t, recorded_losses))
    wanted = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(p[golden["after"]], wanted, **golden.tolerance())
    golden.exempt("weights", "after")  # compared just now, after normalising
    # a batch enters in order, so that all at once comes to the same
    np.testing.assert_array_equal(once.losses, history.losses)
