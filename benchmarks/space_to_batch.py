"""Cost of space-to-batch on a TPU, by its compiler's estimate; no TPU is needed.

    python -m benchmarks.space_to_batch

Three residual blocks and their gradients, compiled for one chip of a v5e with the programs' flags (`process.tpu`) and
with the compiler's defaults, which cut few images into strips.  Cycles and temporary memory are written to
benchmarks/results/space_to_batch.json.
"""

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks import alternating
from ddpm_jax.preflight import compile_stats, cost, topology
from ddpm_jax.process import tpu

CASES = (
    (4, 256, 128, "float32"), (4, 256, 128, "bfloat16"), (8, 256, 128, "float32"), (4, 128, 128, "float32"),
    (1, 128, 128, "float32"), (4, 128, 32, "float32"), (4, 32, 256, "bfloat16"),
)  # fmt: skip
"""Images, side, channels, type."""

TOPOLOGY = "v5e:1x1"


def main(argv: list[str]) -> None:
    if argv:
        batch, side, channels, dtype = argv
        print(json.dumps(compile_blocks(int(batch), int(side), int(channels), dtype)))
        return
    found = {}
    for case in CASES:
        name = f"{case[0]} images, {case[1]}x{case[1]}, {case[2]} channels, {case[3]}"
        found[name] = {"whole": compile_in_subprocess(case, "false"), "strips": compile_in_subprocess(case, "true")}
        print(name, found[name], flush=True)
    made = {"commit": alternating.commit(), "place": TOPOLOGY, **alternating.environment("jax", "libtpu")}
    alternating.write_results("space_to_batch", {"made": made, "blocks": found})


def compile_in_subprocess(case: tuple[int, int, int, str], enabled: str) -> dict[str, Any]:
    """Cycles and memory of a case, in a new process, because libtpu reads its flags once."""
    libtpu_args = " ".join(f"--{flag}={enabled}" for flag in tpu.DISABLED_FLAGS)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.space_to_batch", *map(str, case)],
        check=True, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"LIBTPU_INIT_ARGS": libtpu_args},
    )  # fmt: skip
    return json.loads(done.stdout)


def compile_blocks(batch: int, side: int, channels: int, dtype: str) -> dict[str, Any]:
    """Cycles by kind, and bytes of temporaries."""
    topology.set_environment()
    import jax
    import jax.numpy as jnp

    from ddpm_jax.models.unet.layers import ResnetBlock

    resnet_blocks = [ResnetBlock(channels, dtype=jnp.dtype(dtype), dropout_index=index) for index in range(3)]

    def loss(params, x, temb):
        for block, its in zip(resnet_blocks, params, strict=True):
            x = block.apply(its, x, temb)
        return jnp.square(x.astype(jnp.float32)).mean()

    x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.dtype(dtype))
    temb = jax.ShapeDtypeStruct((batch, 512), jnp.float32)
    params = [jax.eval_shape(block.init, jax.random.key(0), x, temb) for block in resnet_blocks]
    one = jax.sharding.SingleDeviceSharding(topology.devices(topology.find_slice(TOPOLOGY))[0])
    step = jax.jit(jax.grad(loss, argnums=(0, 1)), in_shardings=one, out_shardings=one)
    done = step.lower(params, x, temb).compile(compiler_options={"exec_time_optimization_effort": 0.0})
    cycles = cost.estimated_cycles(done.as_text() or "")
    return {
        "cycles": sum(cycles.values()),
        "temporaries": compile_stats.compiled_memory(done).temporaries,
        "kinds": cycles,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
