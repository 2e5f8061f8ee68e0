"""Whole reverse chains against golden data: ancestral, DDIM, respaced, with the golden noise in place of ours."""

import jax
import jax.numpy as jnp
import numpy as np
from goldens_loader import (
    Golden,
    cases,
    exact,
    ids,
    network_denoiser,
    schedule,
    synthetic_net,
    times_of,
)

from ddpm_jax import gaussian, samplers, schedules
from ddpm_jax.gaussian import Estimate
from ddpm_jax.schedules import at


def table(golden: Golden, sched, times: np.ndarray, noise: jax.Array):
    """A sampler's source of noise: noise[i] for the step that leaves times[i]."""
    by_time = jnp.zeros((sched.T + 1, *noise.shape[1:]), golden.dtype).at[np.asarray(times)].set(noise)
    return lambda keys, t, like: by_time[t]


def run(sampler: samplers.Sampler, x_T: jax.Array, times: np.ndarray, keep) -> samplers.State:
    """The chain's states at the times in `keep`; no key is ever used."""
    keys = samplers.image_keys(0, range(x_T.shape[0]))
    return samplers.trajectory(keys, sampler, x_T, times, keep=[int(t) for t in keep])


def close_chain(golden: Golden, sampler, times, arrivals, *, x0: str) -> None:
    """Compares the states on arrival at the given times, the x_0 predicted on the way there, and the end."""
    states = run(sampler, golden["x_T"], times, [*arrivals, 0])
    golden.close("samples", states.x[:-1])
    golden.close("final", states.x[-1])
    if x0 in golden.names:
        golden.close(x0, states.x0[:-1])


@cases("d/*")
def test_ancestral_chain(golden: Golden):
    sched = schedule(golden)
    denoise, mix = network_denoiser(golden, sched, synthetic_net(golden, sched), golden.args["clip_denoised"])
    noise = table(golden, sched, range(1, sched.T + 1), golden["noise"])
    sampler = samplers.ancestral(sched, denoise, mix=mix, noise=noise)
    # a step from their t is one from our t + 1, and arrives at our t
    close_chain(golden, sampler, np.arange(sched.T, -1, -1), golden["record_t"], x0="pred_xstart")


@cases("o/p_sample_loop/*")
def test_the_originals_chain_and_its_predictions_on_the_way(golden: Golden):
    sched = schedule(golden)
    denoise, mix = network_denoiser(golden, sched, synthetic_net(golden, sched), golden.args["clip_denoised"])
    noise = table(golden, sched, range(1, sched.T + 1), golden["noise"])
    sampler = samplers.ancestral(sched, denoise, mix=mix, noise=noise)
    slots = 5 * np.arange(exact(golden.id, "xstartpreds").shape[1])  # slot n: the last x_0 seen with t // 5 = n
    states = run(sampler, golden["x_T"], np.arange(sched.T, -1, -1), slots)
    golden.close("final", states.x[0])
    golden.close("xstartpreds", states.x0.swapaxes(0, 1))


@cases("o/interpolate_*")
def test_interpolation(golden: Golden):
    sched, t, weight = schedule(golden), golden.args["t"] + 1, golden.args["lam"]
    denoise = gaussian.denoiser(sched, synthetic_net(golden, sched), clip=True)
    noise = table(golden, sched, range(1, sched.T + 1), golden["noise"])
    sampler = samplers.ancestral(sched, denoise, mix=0.0, noise=noise)
    one, two = (gaussian.q_sample(sched, golden["x" + i], t, golden["noise" + i]) for i in "12")
    states = run(sampler, (1 - weight) * one + weight * two, np.arange(t, -1, -1), [0])
    golden.close("x_interp", states.x[0])


@cases("f/ddim_chain/*")
def test_ddim_chain_on_respaced_times(golden: Golden):
    sched = schedule(golden)
    denoise = gaussian.denoiser(sched, synthetic_net(golden, sched), clip=golden.args["clip_denoised"])
    times = times_of(sched.T, golden.args["timestep_respacing"])
    np.testing.assert_array_equal(times[:-1][::-1] - 1, golden["timestep_map"])
    noise = table(golden, sched, times[:-1][::-1], golden["noise"])
    sampler = samplers.ddim(sched, denoise, eta=golden.args["eta"], noise=noise)
    close_chain(golden, sampler, times, times[::-1][golden["record_i"]], x0="pred_xstart")


@cases("f/spaced_p_chain/*")
def test_ancestral_chain_on_respaced_times(golden: Golden):
    sched = schedule(golden)
    golden.args = {**golden.args, "model_mean_type": "eps"}
    denoise, mix = network_denoiser(golden, sched, synthetic_net(golden, sched), golden.args["clip_denoised"])
    times = times_of(sched.T, golden.args["timestep_respacing"])
    noise = table(golden, sched, times[:-1][::-1], golden["noise"])
    sampler = samplers.ancestral(sched, denoise, mix=mix, noise=noise)
    close_chain(golden, sampler, times, times[::-1][golden["record_i"]], x0="pred_xstart")
    golden.left_out("record_i")  # which steps the peer kept


# --- diffusers

QUIRKS = ids("f/diffusers/DDIMScheduler_*timestep_spacing=linspace*")


def diffusers_chain(golden: Golden):
    """Schedule, denoiser and times of a scheduler's case; the times are ours, and must be the scheduler's."""
    config, steps = golden.args["config"], golden.args["num_inference_steps"]
    sched = schedules.linear(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    if config.get("rescale_betas_zero_snr"):
        sched = schedules.from_betas(exact("f/rescale_zero_terminal_snr_T1000", "betas"))
    clip = config["clip_sample"]
    if config.get("prediction_type") == "v_prediction":
        m, s = (golden.args["denoise_params"][name] for name in "ms")

        def net(x, t):
            signal, noise = at(sched.signal, t, x), at(sched.noise, t, x)
            off = (x - signal * m) / (signal**2 * s**2 + noise**2)
            return signal * noise * off - noise * (m + signal * s**2 * off)

        denoise = gaussian.denoiser(sched, net, "v", clip=clip)
    else:
        denoise = gaussian.denoiser(sched, synthetic_net(golden, sched), clip=clip)
    times = samplers.times(sched.T, steps, spacing=config["timestep_spacing"])
    np.testing.assert_array_equal(times[:-1] - 1, golden["timesteps"])
    golden.left_out("timesteps", "record_i")  # compared just now; which steps were kept
    return sched, denoise, times


@cases("f/diffusers/DDPMScheduler_*")
def test_diffusers_ancestral_chain(golden: Golden):
    sched, denoise, times = diffusers_chain(golden)
    mix = {"fixed_small": 0.0, "fixed_large": 1.0}[golden.args["config"]["variance_type"]]
    noise = table(golden, sched, times[:-1], golden["noise"])
    sampler = samplers.ancestral(sched, denoise, mix=mix, noise=noise)
    close_chain(golden, sampler, times, times[1:][golden["record_i"]], x0="pred_original_sample")


@cases("f/diffusers/DDIMScheduler_*", but="*timestep_spacing=linspace*")
def test_diffusers_ddim_chain(golden: Golden):
    sched, denoise, times = diffusers_chain(golden)
    given, options = golden["noise"] if "noise" in golden.names else None, golden.args["step_kwargs"]
    noise = samplers.step_noise if given is None else table(golden, sched, times[:-1], given)
    if golden.args["config"]["clip_sample"] and not options.get("use_clipped_model_output"):
        # it clips x_0 but keeps the network's own noise beside it, which then no longer adds up to x_t
        clipped, unclipped = denoise, gaussian.denoiser(sched, synthetic_net(golden, sched), clip=False)

        def denoise(x, t):
            return Estimate(clipped(x, t).x0, unclipped(x, t).eps)

    sampler = samplers.ddim(sched, denoise, eta=options.get("eta", 0.0), noise=noise)
    close_chain(golden, sampler, times, times[1:][golden["record_i"]], x0="pred_original_sample")


@cases(*QUIRKS)
def test_diffusers_ddim_misses_its_own_next_time(golden: Golden):
    """Its steps go to t - T // n, which for this spacing is not the next of its times: ours differ, for that reason."""
    sched, denoise, times = diffusers_chain(golden)
    assert golden.case["expect"] == "peer_quirk"
    sampler = samplers.ddim(sched, denoise, noise=lambda keys, t, like: jnp.zeros_like(like))
    stride = sched.T // golden.args["num_inference_steps"]
    assert (np.maximum(times[:-1] - stride, 0) != times[1:]).any()

    @jax.jit
    def wrong(x):
        def step(x, t):
            state = sampler.step(None, sampler.init(x, t), t, jnp.maximum(t - stride, 0))
            return state.x, (state.x, state.x0)

        return jax.lax.scan(step, x, jnp.asarray(times[:-1]))[1]

    xs, x0s = wrong(golden["x_T"])
    golden.close("samples", xs[golden["record_i"]])
    golden.close("pred_original_sample", x0s[golden["record_i"]])
    golden.close("final", xs[-1])

    ours = run(sampler, golden["x_T"], times, times[1:])
    # the first prediction rests on x_T alone
    golden.close("pred_original_sample", ours.x0[0], at=0)
    off = np.abs(ours.x[-1] - exact(golden.id, "final")).max()
    assert off > 0.02  # and the tolerance of the comparison above is 1e-6


@cases("f/diffusers/DPMSolverMultistepScheduler_*")
def test_diffusers_dpm_solver_chain(golden: Golden):
    """Its times, which are no spacing of ours, and its two ends: the data, or the least noise, our t = 1."""
    config = golden.args["config"]
    sched = schedules.linear(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    end = 0 if config["final_sigmas_type"] == "zero" else 1
    times = np.array([*(np.asarray(golden["timesteps"]) + 1), end], np.int32)
    ratios = np.asarray(sched.noise / sched.signal, np.float64)[times]
    np.testing.assert_allclose(ratios, golden["sigmas"], rtol=1e-5)
    second = {"midpoint": "midpoint", "heun": "integral"}[config.get("solver_type", "midpoint")]
    denoise = gaussian.denoiser(sched, synthetic_net(golden, sched), clip=False)
    sampler = samplers.dpm_solver_pp(sched, denoise, order=config["solver_order"], second=second)
    states = run(sampler, golden["x_T"], times, [*times[1:][golden["record_i"]], end])
    golden.close("samples", states.x[:-1])
    golden.close("final", states.x[-1])
    golden.left_out("timesteps", "sigmas", "record_i")  # used and compared just now; which steps the peer kept
