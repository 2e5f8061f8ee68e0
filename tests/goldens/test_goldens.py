"""Schedules and single transitions against golden data; and that no golden case is passed over."""

import ast
import contextlib
import functools

import goldens_loader
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_loader import (
    MANIFEST,
    MEAN_TYPE,
    X0_FROM_MEAN,
    Golden,
    cases,
    close_step,
    constant_net,
    first_and_rest,
    map_examples,
    reverse_step,
    schedule,
    times_of,
)

from ddpm_jax import gaussian, likelihood, losses, samplers, schedules


def test_every_case_of_the_manifest_is_compared():
    """By the patterns that the files of tests claim: `cases` itself refuses one that nothing matches, or two claims."""
    claimed = []
    for path in goldens_loader.FOLDER.parent.rglob("test_*.py"):
        constants = {}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                constants[ast.unparse(node.targets[0])] = node.value
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "cases"):
                continue
            starred = [constants[ast.unparse(arg.value)] for arg in node.args if isinstance(arg, ast.Starred)]
            patterns = [arg for call in (node, *starred) for arg in call.args if not isinstance(arg, ast.Starred)]
            exclude = [ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == "exclude"]
            claimed += goldens_loader.ids(*map(ast.literal_eval, patterns), exclude=exclude[0] if exclude else None)
    assert sorted(claimed) == sorted(MANIFEST)


# --- a: schedules


@cases("a/*")
def test_schedule_and_its_derived_arrays(golden: Golden):
    args = golden.args
    if "schedule_name" in args:
        sched = goldens_loader.named_schedule(args["schedule_name"], args["num_diffusion_timesteps"])
    else:
        sched = goldens_loader.original_schedule(
            args["beta_schedule"], args["num_diffusion_timesteps"], args["beta_start"], args["beta_end"]
        )
    for name, ours in derived_arrays(sched).items():
        # the log of a variance next to 1 is as exact as the variance
        rounding = {"atol": 1.2e-7} if golden.single and "log_variance" in name else {}
        if name in golden.names:
            golden.close(name, ours, **rounding)
    if "alphas_cumprod_next" in golden.names:
        # the peer's 0 beyond the last step is no row of ours
        golden.close("alphas_cumprod_next", sched.signal[2:] ** 2, index=slice(None, -1))


@jax.jit
def derived_arrays(sched: schedules.Schedule) -> dict[str, jax.Array]:
    """The peers' columns, each from the public function that gives it."""
    t = np.arange(1, sched.T + 1)
    one, zero = jnp.ones_like(sched.signal[1:]), jnp.zeros_like(sched.signal[1:])
    small = gaussian.reverse_variance(sched, t, t - 1, one, 0.0)
    large = gaussian.reverse_variance(sched, t, t - 1, one, 1.0)
    log_first = jnp.log(likelihood.decoder_variance(sched))
    return {
        "betas": large,
        "alphas_cumprod": sched.signal[1:] ** 2,
        "alphas_cumprod_prev": sched.signal[:-1] ** 2,
        "sqrt_alphas_cumprod": gaussian.q_sample(sched, one, t, zero),
        "sqrt_one_minus_alphas_cumprod": gaussian.q_sample(sched, zero, t, one),
        "log_one_minus_alphas_cumprod": -jax.nn.softplus(sched.log_snr[1:]),
        "sqrt_recip_alphas_cumprod": gaussian.estimate(sched, "eps", zero, one, t).x0,
        "sqrt_recipm1_alphas_cumprod": gaussian.estimate(sched, "eps", -one, zero, t).x0,
        "posterior_variance": small,
        "posterior_mean_coef1": gaussian.posterior(sched, one, zero, t, t - 1).mean,
        "posterior_mean_coef2": gaussian.posterior(sched, zero, one, t, t - 1).mean,
        "posterior_log_variance_clipped": first_and_rest(log_first, jnp.log(small)),
        "posterior_log_variance_clipped_1e-20": jnp.log(jnp.maximum(small, 1e-20)),
        "fixedlarge_log_variance": first_and_rest(log_first, jnp.log(large)),
    }


@cases("f/rescale_zero_terminal_snr_T1000")
def test_a_schedule_rescaled_to_no_signal_at_the_end(golden: Golden):
    before = schedules.from_betas(goldens_loader.stored_array(golden.id, "betas_in"))
    after = schedules.Schedule(*map(np.asarray, schedules.zero_terminal_snr(before)))
    assert after.signal[-1] == 0 and after.log_snr[-1] == -np.inf
    theirs = schedules.from_betas(goldens_loader.stored_array(golden.id, "betas"))
    np.testing.assert_allclose(after.log_snr[:-1], np.asarray(theirs.log_snr)[:-1], rtol=1e-6, atol=1e-9)
    t = np.arange(1, after.T + 1)
    golden.close("betas", gaussian.reverse_variance(after, t, t - 1, after.signal[1:], 1.0))


# --- b: q


@cases("b/*")
def test_forward_laws_and_estimates(golden: Golden):
    sched, t = schedule(golden), golden["t"] + 1
    assert t[0] == 1
    found = jax.tree.map(np.asarray, laws(sched, t, golden["x_start"], golden["x_t"], golden["noise"]))
    for name, ours in found.items():
        wide = X0_FROM_MEAN if golden.single and name == "pred_xstart_from_xprev" else {}
        golden.close(name, ours, **wide)


@jax.jit
def laws(sched: schedules.Schedule, t, x0, x_t, noise) -> dict[str, jax.Array]:
    """The peers' functions of q, by ours."""
    q, post = gaussian.marginal(sched, x0, t), gaussian.posterior(sched, x0, x_t, t, t - 1)
    return {
        "q_mean": q.mean,
        "q_variance": q.var,
        "q_log_variance": jnp.log(q.var),
        "q_sample": gaussian.q_sample(sched, x0, t, noise),
        "posterior_mean": post.mean,
        "posterior_variance": post.var,
        "posterior_log_variance_clipped": first_and_rest(
            jnp.log(likelihood.decoder_variance(sched)), jnp.log(post.var)
        ),
        "pred_xstart_from_eps": gaussian.estimate(sched, "eps", noise, x_t, t).x0,
        "pred_eps_from_xstart": gaussian.estimate(sched, "x0", x0, x_t, t).eps,
        "pred_xstart_from_xprev": gaussian.estimate(sched, "mean", noise, x_t, t).x0,
    }


@cases("f/v_prediction_T1000")
def test_v_prediction(golden: Golden):
    sched, t = schedule(golden), golden["t"] + 1
    golden.close("v", gaussian.target(sched, "v", golden["x_start"], golden["eps"], t))
    found = gaussian.estimate(sched, "v", golden["v_model"], golden["x_t_arbitrary"], t)
    golden.close("pred_xstart_from_v", found.x0)
    golden.close("pred_eps_from_v", found.eps)


# --- c: one reverse step


@cases("c/*")
def test_one_ancestral_step(golden: Golden):
    # the peers do not clip a predicted mean, only what they report as x_0; ours derives the mean from the clipped x_0
    mean_given = golden.args["model_mean_type"] == "xprev"
    clip = golden.args["clip_denoised"]
    step = reverse_step(golden, schedule(golden), clip and not mean_given)
    close_step(golden, step, clip)


@cases("o/gd1/noisepred")
def test_the_first_version_of_the_original(golden: Golden):
    sched, t, x0 = schedule(golden), golden["t"] + 1, golden["x_start"]
    golden.args = {**golden.args, "model_mean_type": "eps", "model_var_type": "fixedsmall"}
    for suffix, clip in (("_clip", True), ("_noclip", False)):
        mean, var, _, x0_hat, sample = reverse_step(golden, sched, clip)
        log_var = np.log(np.maximum(var, np.asarray(1e-20, var.dtype)))
        close_step(golden, (mean, var, log_var, x0_hat, sample), clip, suffix)
    q = gaussian.marginal(sched, x0, t)
    golden.close("q_mean", q.mean)
    golden.close("q_variance", q.var)
    golden.close("q_log_variance", np.log(q.var))
    loss = jax.jit(lambda out, noise: losses.denoising_loss(sched, constant_net(out), x0, t, noise))
    golden.close("loss", loss(golden["model_output"], golden["noise"]))


# --- f: DDIM, one step, and respacing


@cases("f/ddim_step/*")
def test_one_ddim_step(golden: Golden):
    sched, t, x_t, clip = schedule(golden), golden["t"] + 1, golden["x_t"], golden.args["clip_denoised"]
    steps = ddim_steps(MEAN_TYPE[golden.args["model_mean_type"]], clip)
    inputs = x_t, t, golden["model_output"], golden["noise"]
    samples, x0_hat, back, eps = map(np.asarray, steps(sched, np.array([0, 0.5, 1], golden.dtype), *inputs))
    for eta, sample in zip((0.0, 0.5, 1.0), samples, strict=True):
        golden.close(f"sample_eta{eta}", sample)
    golden.close("pred_xstart", x0_hat)
    # beyond t = T the peer puts pure noise, its predicted eps; we have no such row
    assert (t[:-1] < sched.T).all() and t[-1] == sched.T
    golden.close("reverse_sample", back, index=slice(None, -1))
    golden.close("reverse_sample", eps[-1], index=-1)


@functools.cache
def ddim_steps(predicts: str, clip: bool):
    """(schedule, etas, x_t, t, out, noise) -> samples [etas, B], x_0 of the last, steps up but the last one's, eps."""

    @jax.jit
    def steps(sched, etas, x_t, t, out, noise):
        def step(eta, forward, *inputs):
            def one(x_t, t, out, noise):
                denoise = gaussian.denoiser(sched, constant_net(out), predicts, clip=clip)
                sampler = samplers.ddim(sched, denoise, eta=eta, noise=lambda keys, t, like: noise)
                s = t[0] + 1 if forward else t[0] - 1
                state = sampler.step(None, sampler.init(x_t, t[0]), t[0], s)
                return state.x, state.x0

            return map_examples(one, *inputs)

        inputs = x_t, t, out, noise
        down, x0_hat = jax.vmap(lambda eta: step(eta, False, *inputs))(etas)
        up, _ = step(0.0, True, *(a[:-1] for a in inputs))
        eps = gaussian.denoiser(sched, constant_net(out), predicts, clip=clip)(x_t, t).eps
        return down, x0_hat[-1], up, eps

    return steps


@cases("f/space_timesteps/*", exclude="*/errors")
def test_respaced_times(golden: Golden):
    ours = times_of(golden.args["num_timesteps"], golden.args["section_counts"])
    assert ours[-1] == 0
    np.testing.assert_array_equal(ours[:-1][::-1] - 1, golden["timesteps"])
    golden.exempt("timesteps")  # compared just now, as the integers they are


@cases("f/space_timesteps/errors")
def test_impossible_respacings_raise(golden: Golden):
    for T, counts, result in golden.args["results"]:
        # our 999 steps of 1000 fail alike; a chain of all steps is not an error anywhere
        with pytest.raises(ValueError) if result.startswith("ValueError") else contextlib.nullcontext():
            assert len(times_of(T, counts)) > 1


@cases("f/spaced_diffusion/*")
def test_respaced_schedule_is_two_rows_of_the_full_one(golden: Golden):
    sched = schedule(golden)
    times = times_of(sched.T, golden.args["timestep_respacing"])
    t, s = times[:-1][::-1], times[1:][::-1]
    np.testing.assert_array_equal(t - 1, golden["timestep_map"])
    golden.exempt("timestep_map")  # compared just now
    like, numbers = np.ones(t.shape, golden.dtype), (np.asarray(mix, golden.dtype) for mix in (0.0, 1.0))
    small, large = (np.asarray(gaussian.reverse_variance(sched, t, s, like, mix)) for mix in numbers)
    golden.close("betas", large)
    golden.close("alphas_cumprod", np.asarray(sched.signal)[t] ** 2)
    golden.close("posterior_variance", small)
    var_1 = np.asarray(likelihood.decoder_variance(sched, times))
    golden.close("posterior_log_variance_clipped", np.log(np.append(var_1, small[1:])))


# --- lucidrains' extras


@cases("f/lucidrains_extras_T1000")
def test_sigmoid_schedule_and_min_snr_weights(golden: Golden):
    T = golden.args["T"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    # the peer has the ends in float32, and alpha-bar nearly vanishes at one of them
    low, high = (np.float64(np.float32(sigmoid(x))) for x in (-3.0, 3.0))
    alpha_bar = (high - sigmoid(6 * np.linspace(0, 1, T + 1) - 3)) / (high - low)
    sched = schedules.from_betas(np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999))
    t = np.arange(1, T + 1)
    golden.close("sigmoid_betas", gaussian.reverse_variance(sched, t, t - 1, sched.signal[1:], 1.0))

    sched = schedules.linear(T)

    def weight(predicts, x0, eps):
        off_by_one = constant_net(gaussian.target(sched, predicts, x0, eps, t) + 1)
        return losses.denoising_loss(sched, off_by_one, x0, t, eps, predicts=predicts, weight=losses.min_snr(5.0))

    weights = jax.jit(lambda *inputs: [weight(predicts, *inputs) for predicts in ("eps", "x0", "v")])

    one = np.ones((T, 1), golden.dtype)
    for name, weight in zip(("noise", "x0", "v"), weights(one, 2 * one), strict=True):
        golden.close(f"min_snr5_weight_pred_{name}", weight)
