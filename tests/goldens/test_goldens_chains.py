"""Whole reverse chains against golden data: ancestral, DDIM, respaced, with the golden noise in place of ours."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from goldens_loader import Golden, Peer, cases, ids, net_of, peer, schedule, stored_array, synthetic_net, times_of

from ddpm_jax import gaussian, samplers, schedules
from ddpm_jax.gaussian import Estimate
from ddpm_jax.schedules import gather


class Kind(NamedTuple):
    """What of a chain is no array: cases of one kind share a compiled step.

    Attributes:
        sampler: "ancestral" or "ddim", whose option is mix or eta, or a key of `SOLVERS`.
        function: the synthetic network, "tanh" or "gauss"; "v" is the latter, predicting v.
        variance: "fixed", or what the network learns.
        clip: whether x_0 is clipped; None leaves the network's own noise beside it.
    """

    sampler: str
    function: str
    clip: bool | None
    variance: str = "fixed"


SOLVERS = {
    "order 1": {"order": 1, "solver_type": "midpoint"},
    "order 2": {"order": 2, "solver_type": "midpoint"},
    "order 2, integral": {"order": 2, "solver_type": "integral"},
}


@functools.cache
def compiled(kind: Kind):
    """(init, step) of a sampler: init(x, t); step(schedule, numbers, option, state, t, s, noise)."""

    def sampler(sched, p, option, noise):
        if kind.function == "v":

            def net(x, t):
                signal, noise = gather(sched.signal, t, x), gather(sched.noise, t, x)
                off = (x - signal * p["m"]) / (signal**2 * p["s"] ** 2 + noise**2)
                return signal * noise * off - noise * (p["m"] + signal * p["s"] ** 2 * off)

            denoise = gaussian.denoiser(sched, net, "v", clip=kind.clip)
        else:
            net = net_of(kind.function, kind.variance, p, sched)
            denoise = Peer("eps", kind.variance, kind.clip is not False).denoiser(sched, net)
        if kind.clip is None:
            # it clips x_0 but keeps the network's own noise beside it, which then no longer adds up to x_t
            clipped, unclipped = denoise, gaussian.denoiser(sched, net, clip=False)

            def denoise(x, t):
                return Estimate(clipped(x, t).x0, unclipped(x, t).eps)

        step_noise = lambda keys, t, like: noise  # noqa: E731
        if kind.sampler == "ancestral":
            return samplers.ancestral(sched, denoise, variance_mix=option, noise=step_noise)
        if kind.sampler == "ddim":
            return samplers.ddim(sched, denoise, eta=option, noise=step_noise)
        return samplers.dpm_solver_pp(sched, denoise, **SOLVERS[kind.sampler])

    def step(sched, p, option, state, t, s, noise):
        return sampler(sched, p, option, noise).step(None, state, t, s)

    return sampler(None, None, None, None).init, jax.jit(step)


def run(golden: Golden, kind: Kind, sched, option: float, x_T, pairs, noise=None) -> dict:
    """The chain's x and x_0 on arrival after each of the steps (t, s), by s; noise[i] is that of the i-th."""
    init, step = compiled(kind)
    numbers = {name: np.asarray(value, golden.dtype) for name, value in golden.args["denoise_params"].items()}
    noise = np.zeros((len(pairs), 1), golden.dtype) if noise is None else noise
    state, states = init(jnp.asarray(x_T), jnp.asarray(pairs[0][0], jnp.int32)), {}
    for (t, s), z in zip(pairs, noise, strict=True):
        state = step(sched, numbers, np.asarray(option, golden.dtype), state, np.int32(t), np.int32(s), z)
        states[int(s)] = state.x, state.x0
    return states


def close_chain(golden: Golden, kind: Kind, sched, option, times, arrivals, *, x0: str, noise=None) -> None:
    """Compares the states on arrival at the given times, the x_0 predicted on the way there, and the end."""
    states = run(golden, kind, sched, option, golden["x_T"], list(itertools.pairwise(times)), noise)
    golden.close("samples", np.stack([states[int(s)][0] for s in arrivals]))
    golden.close("final", states[int(times[-1])][0])
    if x0 in golden.names:
        golden.close(x0, np.stack([states[int(s)][1] for s in arrivals]))


def kind_of(golden: Golden, sampler: str) -> tuple[Kind, float]:
    """Of a case of the peers with a variance; and its mix."""
    kind, mix = peer(golden, golden.args["clip_denoised"])
    return Kind(sampler, golden.args["denoise_fn"], kind.clip, kind.variance), float(mix)


@cases("d/*")
def test_ancestral_chain(golden: Golden):
    sched, (kind, mix) = schedule(golden), kind_of(golden, "ancestral")
    # a step from their t is one from our t + 1, and arrives at our t; their noise is by t
    times = np.arange(sched.T, -1, -1)
    close_chain(golden, kind, sched, mix, times, golden["record_t"], x0="pred_xstart", noise=golden["noise"][::-1])


@cases("o/p_sample_loop/*")
def test_the_originals_chain_and_its_predictions_on_the_way(golden: Golden):
    """By `trajectory`, in one program."""
    sched, (kind, mix) = schedule(golden), peer(golden, golden.args["clip_denoised"])
    denoise = kind.denoiser(sched, synthetic_net(golden, sched))
    save_at = 5 * np.arange(stored_array(golden.id, "xstartpreds").shape[1])  # slot n: the last x_0 with t // 5 = n

    @jax.jit
    def states(x_T, noise):
        keys = samplers.image_keys(0, range(x_T.shape[0]))  # none is ever used
        by_time = jnp.concatenate([jnp.zeros_like(noise[:1]), noise])
        sampler = samplers.ancestral(sched, denoise, variance_mix=mix, noise=lambda keys, t, like: by_time[t])
        times = np.arange(sched.T, -1, -1)
        return samplers.trajectory(keys, sampler, x_T, times, save_at=save_at.tolist())

    found = states(golden["x_T"], golden["noise"])
    golden.close("final", found.x[0])
    golden.close("xstartpreds", found.x0.swapaxes(0, 1))


@cases("o/interpolate_*")
def test_interpolation(golden: Golden):
    sched, t, weight = schedule(golden), golden.args["t"] + 1, golden.args["lam"]
    one, two = (np.asarray(gaussian.q_sample(sched, golden["x" + i], t, golden["noise" + i])) for i in "12")
    x_t, pairs = (1 - weight) * one + weight * two, list(itertools.pairwise(range(t, -1, -1)))
    kind = Kind("ancestral", golden.args["denoise_fn"], True)
    states = run(golden, kind, sched, 0.0, x_t.astype(golden.dtype), pairs, golden["noise"][t - 1 :: -1])
    golden.close("x_interp", states[0][0])


@cases("f/ddim_chain/*")
def test_ddim_chain_on_respaced_times(golden: Golden):
    sched, kind = schedule(golden), Kind("ddim", golden.args["denoise_fn"], golden.args["clip_denoised"])
    times = times_of(sched.T, golden.args["timestep_respacing"])
    np.testing.assert_array_equal(times[:-1][::-1] - 1, golden["timestep_map"])
    arrivals, noise = times[::-1][golden["record_i"]], golden["noise"][::-1]
    close_chain(golden, kind, sched, golden.args["eta"], times, arrivals, x0="pred_xstart", noise=noise)


@cases("f/spaced_p_chain/*")
def test_ancestral_chain_on_respaced_times(golden: Golden):
    golden.args = {**golden.args, "model_mean_type": "eps"}
    sched, (kind, mix) = schedule(golden), kind_of(golden, "ancestral")
    times = times_of(sched.T, golden.args["timestep_respacing"])
    arrivals, noise = times[::-1][golden["record_i"]], golden["noise"][::-1]
    close_chain(golden, kind, sched, mix, times, arrivals, x0="pred_xstart", noise=noise)
    golden.exempt("record_i")  # which steps the peer kept


# --- diffusers

QUIRKS = ids("f/diffusers/DDIMScheduler_*timestep_spacing=linspace*")


def diffusers_chain(golden: Golden):
    """Schedule, network and times of a scheduler's case; the times are ours, and must be the scheduler's."""
    config, steps = golden.args["config"], golden.args["num_inference_steps"]
    sched = schedules.linear(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    if config.get("rescale_betas_zero_snr"):
        sched = schedules.zero_terminal_snr(sched)
    function = "v" if config.get("prediction_type") == "v_prediction" else golden.args["denoise_fn"]
    times = samplers.times(sched.T, steps, spacing=config["timestep_spacing"])
    np.testing.assert_array_equal(times[:-1] - 1, golden["timesteps"])
    golden.exempt("timesteps", "record_i")  # compared just now; which steps were kept
    return sched, function, times


@cases("f/diffusers/DDPMScheduler_*")
def test_diffusers_ancestral_chain(golden: Golden):
    sched, function, times = diffusers_chain(golden)
    config, arrivals = golden.args["config"], times[1:][golden["record_i"]]
    mix = {"fixed_small": 0.0, "fixed_large": 1.0}[config["variance_type"]]
    kind = Kind("ancestral", function, config["clip_sample"])
    close_chain(golden, kind, sched, mix, times, arrivals, x0="pred_original_sample", noise=golden["noise"])


@cases("f/diffusers/DDIMScheduler_*", exclude="*timestep_spacing=linspace*")
def test_diffusers_ddim_chain(golden: Golden):
    sched, function, times = diffusers_chain(golden)
    options, clip, arrivals = (
        golden.args["step_kwargs"],
        golden.args["config"]["clip_sample"],
        times[1:][golden["record_i"]],
    )
    kind = Kind("ddim", function, None if clip and not options.get("use_clipped_model_output") else clip)
    eta, noise = options.get("eta", 0.0), golden["noise"] if "noise" in golden.names else None
    close_chain(golden, kind, sched, eta, times, arrivals, x0="pred_original_sample", noise=noise)


@cases(*QUIRKS)
def test_diffusers_ddim_misses_its_own_next_time(golden: Golden):
    """Its steps go to t - T // n, which for this spacing is not the next of its times: ours differ, for that reason."""
    sched, function, times = diffusers_chain(golden)
    assert golden.case["expect"] == "peer_quirk"
    stride, kind = sched.T // golden.args["num_inference_steps"], Kind("ddim", function, False)
    wrong = [(int(t), max(int(t) - stride, 0)) for t in times[:-1]]
    assert [s for _, s in wrong] != times[1:].tolist()
    # by arrival they would not be told apart from ours: one step after the other
    x, arrived = golden["x_T"], []
    for pair in wrong:
        (state,) = run(golden, kind, sched, 0.0, x, [pair]).values()
        arrived.append(state)
        x = state[0]
    golden.close("samples", np.stack([arrived[i][0] for i in golden["record_i"]]))
    golden.close("pred_original_sample", np.stack([arrived[i][1] for i in golden["record_i"]]))
    golden.close("final", x)

    ours = run(golden, kind, sched, 0.0, golden["x_T"], list(itertools.pairwise(times)))
    # the first prediction rests on x_T alone
    golden.close("pred_original_sample", ours[int(times[1])][1], index=0)
    off = np.abs(ours[0][0] - stored_array(golden.id, "final")).max()
    assert off > 0.02  # and the tolerance of the comparison above is 1e-6


@cases("f/diffusers/DPMSolverMultistepScheduler_*")
def test_diffusers_dpm_solver_chain(golden: Golden):
    """Its times, of which one spacing is ours, and its two ends: the data, or the least noise, our t = 1."""
    config, n = golden.args["config"], golden.args["num_inference_steps"]
    T, spacing = config["num_train_timesteps"], config["timestep_spacing"]
    # as docs/samplers.md has them
    as_written = {
        "linspace": np.append(1 + np.round(np.linspace(0, T - 1, n + 1))[:0:-1], 0).astype(int),
        "leading": np.append(1 + np.arange(n, 0, -1) * (T // (n + 1)), 0),
        "trailing": samplers.times(T, n, spacing="trailing"),
    }
    np.testing.assert_array_equal(as_written[spacing][:-1] - 1, golden["timesteps"])
    assert np.array_equal(as_written[spacing], samplers.times(T, n, spacing=spacing)) == (spacing == "trailing")
    sched = schedules.linear(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    end = 0 if config["final_sigmas_type"] == "zero" else 1
    times = np.array([*(np.asarray(golden["timesteps"]) + 1), end], np.int32)
    ratios = np.asarray(sched.noise, np.float64)[times] / np.asarray(sched.signal, np.float64)[times]
    np.testing.assert_allclose(ratios, golden["sigmas"], rtol=1e-5)
    solver = f"order {config['solver_order']}" + (", integral" if config.get("solver_type") == "heun" else "")
    kind, arrivals = Kind(solver, golden.args["denoise_fn"], False), times[1:][golden["record_i"]]
    states = run(golden, kind, sched, 0.0, golden["x_T"], list(itertools.pairwise(times)))
    golden.close("samples", np.stack([states[int(s)][0] for s in arrivals]))
    golden.close("final", states[end][0])
    golden.exempt("timesteps", "sigmas", "record_i")  # used and compared just now; which steps the peer kept
