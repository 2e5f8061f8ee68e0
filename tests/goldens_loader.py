"""Golden data: what independent implementations of the same formulas compute, and how a test compares with it.

`goldens/goldens.json` describes every case: whose code made it, with which arguments, what each array is and how
closely to meet it.  Its times are 0-based (our t is its t + 1), its images NHWC.

A test decorated with `cases(...)` takes a `Golden`, once in float64 and once in float32.  When it ends, every output
array of its case must have been compared, so nothing is passed over in silence.
"""

import contextlib
import fnmatch
import functools
import json
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import gaussian, likelihood, samplers, schedules
from ddpm_jax.schedules import Schedule

FOLDER = pathlib.Path(__file__).parent / "goldens"
MANIFEST = {case["id"]: case for case in json.loads((FOLDER / "goldens.json").read_text())["cases"]}
CLAIMED: set[str] = set()
"""The ids of all cases that some test of the files that have been imported has taken on."""

MEAN_TYPE = {"eps": "eps", "xstart": "x0", "xprev": "mean"}
FIXED_MIX = {"fixedsmall": 0.0, "fixedlarge": 1.0}
PLAIN_FLOAT32 = {"rtol": 2e-6, "atol": 2e-7}
"""For cases whose manifest asks for float64 alone: a few roundings."""

X0_FROM_MEAN = {"atol": 2e-3}
"""Float32, x_0 from a predicted mean: at the last of a thousand steps it is 7000 times a difference of numbers of order
1, each of which is rounded at 1e-7; of components that happen to be small the absolute error counts."""


class Golden:
    """One case in one precision.  `golden[name]` is an array of it, `close` compares an output."""

    def __init__(self, id: str, dtype: str):
        self.id, self.dtype, self.case = id, jnp.dtype(dtype), MANIFEST[id]
        self.args, self.names = self.case["args"], tuple(self.case["arrays"])
        self.compared: set[str] = set()

    def __getitem__(self, name: str):
        """A numpy array, floats in the precision of the test, integers as int32 (times must be concrete)."""
        a = stored_array(self.id, name)
        return a.astype(self.dtype if a.dtype.kind == "f" else np.int32)

    @property
    def single(self) -> bool:
        return self.dtype == jnp.float32

    def tolerance(self) -> dict[str, float]:
        tolerances = self.case.get("tolerance") or {}
        if str(self.dtype) in tolerances:
            rule = tolerances[str(self.dtype)]
            return {} if isinstance(rule, str) else rule  # a rule in words is the test's own business
        if self.single:
            return {"rtol": tolerances["float32_rtol"], "atol": 0.0} if "float32_rtol" in tolerances else PLAIN_FLOAT32
        return {name: tolerances[name] for name in ("rtol", "atol") if name in tolerances}

    def close(self, name: str, ours, *, index=..., **tolerance) -> None:
        """Asserts |ours - golden[index]| <= atol + rtol |golden|, by default with the manifest's tolerances.

        Args:
            index: which part of the golden array `ours` is.
        """
        wanted = stored_array(self.id, name)[index]
        ours = np.asarray(ours)
        assert ours.dtype == self.dtype, f"{name}: computed in {ours.dtype}"
        assert ours.shape == wanted.shape, f"{name}: shape {ours.shape}, golden {wanted.shape}"
        np.testing.assert_allclose(ours, wanted, **{**self.tolerance(), **tolerance}, err_msg=f"{self.id} {name}")
        self.compared.add(name)

    def exempt(self, *names: str) -> None:
        """Outputs that this test does not compare; the test says why."""
        self.compared.update(names)

    def assert_all_compared(self) -> None:
        outputs = {name for name, a in self.case["arrays"].items() if a["role"] == "output"}
        # what a peer gives in float32 tells the rounding of the peer, not ours
        forgotten = {name for name in outputs - self.compared if not name.endswith("_float32")}
        assert not forgotten, f"{self.id}: never compared {sorted(forgotten)}"


@functools.cache
def _file(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as stored:
        return dict(stored)


def stored_array(id: str, name: str) -> np.ndarray:
    """An array as it is stored."""
    case = MANIFEST[id]
    return _file(case["file"])[case["arrays"][name]["key"]]


def ids(*patterns: str, exclude: str | None = None) -> list[str]:
    """Ids of the manifest that match one of the glob patterns, and not `exclude`."""
    return [
        id
        for id in MANIFEST
        if any(fnmatch.fnmatchcase(id, p) for p in patterns) and not (exclude and fnmatch.fnmatchcase(id, exclude))
    ]


def cases(*patterns: str, exclude: str | None = None):
    """Runs a test, which takes a `Golden`, over the matching cases, each in float64 and in float32."""
    found = ids(*patterns, exclude=exclude)
    assert found, f"no golden case matches {patterns}"
    assert not CLAIMED.intersection(found), f"claimed twice: {sorted(CLAIMED.intersection(found))}"
    CLAIMED.update(found)

    def decorate(test):
        @pytest.mark.parametrize("dtype", ["float64", "float32"])
        @pytest.mark.parametrize("id", found)
        def run(id, dtype):
            with precision(dtype):
                golden = Golden(id, dtype)
                test(golden)
            golden.assert_all_compared()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


def precision(dtype: str):
    """A context in which JAX computes in `dtype`."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return jax.enable_x64(True)


@functools.cache
def _schedule(betas: str, dtype: str) -> Schedule:
    made_by, name, rest = re.match(r"get_(named_)?beta_schedule\('(\w+)',?\s*(.*)\)$", betas).groups()
    if made_by:
        return named_schedule(name, int(rest))
    arguments = dict(pair.split("=") for pair in rest.split(","))
    return original_schedule(
        name, int(arguments["num_diffusion_timesteps"]), float(arguments["beta_start"]), float(arguments["beta_end"])
    )


def schedule(golden: Golden) -> Schedule:
    """The schedule of a case whose `betas` are a call of one of the two `get_beta_schedule`s."""
    return _schedule(golden.args["betas"], str(golden.dtype))


def named_schedule(name: str, T: int) -> Schedule:
    """improved-diffusion's: "linear" keeps the sum of betas whatever T, "cosine"."""
    scale = 1000 / T
    return schedules.cosine(T) if name == "cosine" else schedules.linear(T, scale * 1e-4, scale * 0.02)


def original_schedule(name: str, T: int, beta_start: float, beta_end: float) -> Schedule:
    """The original's: betas between the same ends whatever T."""
    if name == "const":
        return schedules.const(T, beta_end)
    if name == "jsd":
        return schedules.jsd(T)
    return getattr(schedules, name)(T, beta_start, beta_end)


def first_and_rest(first_value: jax.Array, rest: jax.Array) -> jax.Array:
    """The peers' clipped log variances: entry 0 is another one."""
    return rest.at[0].set(first_value)


def mix_from_log_variance(
    schedule: Schedule, t: jax.Array, log_var: jax.Array, first_var: jax.Array, *, for_vlb: bool
) -> jax.Array:
    """An absolute log variance as our mix, in the range between the two fixed variances: [B, ...].

    Next to t = T the range is 1e-6 wide: in float32 its logarithm depends on how it is taken, so it is taken here as
    its user takes it, the bound or the sampler.

    Args:
        log_var: [B, ...]; t: [B].
        first_var: the smaller variance at t = 1, where beta-tilde is 0.
    """
    is_first = (t == 1).reshape((-1,) + (1,) * (log_var.ndim - 1))
    s = jnp.where(t == 1, 1, t - 1)
    noise_t, noise_s = schedules.gather(schedule.noise, t, log_var), schedules.gather(schedule.noise, s, log_var)
    log_range = 2 * jnp.log(noise_t / noise_s) if for_vlb else -jnp.log((noise_s / noise_t) ** 2)
    log_range = jnp.where(is_first, 2 * jnp.log(schedule.noise[1]) - jnp.log(first_var), log_range)
    log_large = jnp.log(gaussian.one_minus_snr_ratio(schedule, t, t - 1, log_var) * noise_t**2)
    return 1 + (log_var - log_large) / log_range


def constant_net(out: jax.Array):
    """A network that says `out` whatever it is asked."""
    return lambda x_t, t: out


def absolute_variance(schedule: Schedule, net, first_var: jax.Array, *, for_vlb: bool):
    """A network whose second half is a log variance, as one whose second half is our v in [-1, 1]."""

    def converted(x_t, t):
        out, log_var = jnp.split(net(x_t, t), 2, axis=-1)
        return jnp.concatenate(
            [out, 2 * mix_from_log_variance(schedule, t, log_var, first_var, for_vlb=for_vlb) - 1], axis=-1
        )

    return converted


def synthetic_net(golden: Golden, schedule: Schedule):
    """The network of a chain's case: (x_t, t) -> eps, and the variance half if the case has one."""
    args = golden.args
    return net_of(args["denoise_fn"], args.get("model_var_type", ""), args["denoise_params"], schedule)


def net_of(function: str, variance: str, p, schedule: Schedule):
    """The synthetic network of this name, whose numbers p may be traced."""

    def eps(x, t):
        if function == "tanh":
            index = schedules.gather(jnp.arange(-1.0, schedule.T, dtype=x.dtype), t, x)
            return jnp.tanh(p["a"] * x + p["b"] * index / schedule.T + p["c"])
        signal, noise = schedules.gather(schedule.signal, t, x), schedules.gather(schedule.noise, t, x)
        return noise * (x - signal * p["m"]) / (signal**2 * p["s"] ** 2 + noise**2)

    def net(x, t):
        if not variance.startswith("learned"):
            return eps(x, t)
        v = jnp.sin(p["d"] * x + p["e"])
        return jnp.concatenate([eps(x, t), v if variance == "learned_range" else v - 3], axis=-1)

    return net


def times_of(num_timesteps: int, counts: str) -> np.ndarray:
    """Our times for improved-diffusion's strings: "ddim25", "250", "10,15,20"."""
    if counts.startswith("ddim"):
        return samplers.times(num_timesteps, int(counts[4:]), spacing="ddim")
    return samplers.section_times(num_timesteps, [int(n) for n in counts.split(",")])


class Peer(NamedTuple):
    """What of a peer's model is no array: what one program can be compiled for.

    Attributes:
        predicts: in our terms.
        variance: "fixed", whatever the mix, or one of the two learned ones.
        clip: whether x_0 is clipped.
    """

    predicts: str
    variance: str
    clip: bool

    def denoiser(self, sched: Schedule, net, *, for_vlb: bool = False):
        """Our denoiser for the peer's network."""
        if self.variance == "learned":
            net = absolute_variance(sched, net, likelihood.decoder_variance(sched), for_vlb=for_vlb)
        learned = self.variance != "fixed"
        return gaussian.denoiser(sched, net, self.predicts, clip=self.clip, learned_variance=learned)


def peer(golden: Golden, clip: bool) -> tuple[Peer, np.ndarray]:
    """The case's peer, and the mix of its fixed variance."""
    variance = golden.args["model_var_type"]
    kind = variance if variance.startswith("learned") else "fixed"
    mix = np.asarray(FIXED_MIX.get(variance, 1.0), golden.dtype)
    return Peer(MEAN_TYPE[golden.args["model_mean_type"]], kind, clip), mix


def map_examples(f, *arrays):
    """f over single examples, as batches of one: the samplers' step takes one time for the whole batch."""
    return jax.tree.map(lambda a: a[:, 0], jax.vmap(f)(*(jnp.asarray(a)[:, None] for a in arrays)))


@functools.cache
def _reverse_step(peer: Peer):
    """(schedule, mix, x_t, t, out, noise) -> the arrays of `reverse_step`, and the variance as it is at t = 1."""

    @jax.jit
    def steps(sched, mix, x_t, t, out, noise):
        def step(x_t, t, out, noise):
            def with_noise(noise):
                denoise = peer.denoiser(sched, constant_net(out))
                sampler = samplers.ancestral(sched, denoise, variance_mix=mix, noise=lambda keys, t, like: noise)
                state = sampler.step(None, sampler.init(x_t, t[0]), t[0], t[0] - 1)
                return state.x, state.x0

            (sample, mean), (x0_hat, _) = jax.vmap(with_noise)(jnp.stack([noise, jnp.zeros_like(noise)]))
            return sample, mean, x0_hat

        sample, mean, x0_hat = map_examples(step, x_t, t, out, noise)
        found = peer.denoiser(sched, constant_net(out))(x_t, t)
        var = gaussian.reverse_variance(sched, t, t - 1, x_t, mix if found.variance_mix is None else found.variance_mix)
        var_1 = likelihood.decoder_variance(sched)
        if found.variance_mix is not None:
            var_1 = jnp.exp(
                (1 - found.variance_mix[0]) * jnp.log(var_1) + 2 * found.variance_mix[0] * jnp.log(sched.noise[1])
            )
        return mean, first_and_rest(var_1, var), first_and_rest(jnp.log(var_1), jnp.log(var)), x0_hat, sample, var

    return steps


def reverse_step(golden: Golden, sched, clip: bool):
    """The case's reverse step: mean, variance and its log with the peers' entry 0, predicted x_0, sample."""
    t, kind = golden["t"] + 1, peer(golden, clip)
    assert t[0] == 1 and (t[1:] > 1).all()
    arrays = golden["x_t"], t, golden["model_output"], golden["noise"]
    mean, var, log_var, x0_hat, sample, plain = map(np.asarray, _reverse_step(kind[0])(sched, kind[1], *arrays))
    return mean, plain if golden.args["model_var_type"] == "fixedsmall" else var, log_var, x0_hat, sample


def close_step(golden: Golden, step, clip: bool, suffix: str = ""):
    mean, var, log_var, x0, sample = step
    golden.close("mean" + suffix, mean)
    golden.close("variance" + suffix, var)
    golden.close("log_variance" + suffix, log_var)
    golden.close("sample" + suffix, sample)
    if "pred_xstart" in golden.names:
        wide = X0_FROM_MEAN if golden.single and golden.id.startswith("c/") and "xprev" in golden.id else {}
        golden.close("pred_xstart", np.clip(x0, -1, 1) if clip else x0, **wide)
