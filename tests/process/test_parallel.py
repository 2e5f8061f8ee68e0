"""What runs on every device: by shard_map the very program of pmap, and so the same bits on any hardware."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from ddpm_jax import config as configs
from ddpm_jax import data, process
from ddpm_jax.model import build
from ddpm_jax.preflight import lowering


@pytest.mark.parametrize(
    ("devices", "stream", "together"), [(8, False, 1), pytest.param(1, True, 2, marks=pytest.mark.slow)]
)
def test_shard_map_compiles_the_programs_of_pmap(devices, stream, together):
    """The training step and the sampler, with where each array lies and which are donated; but for their names."""

    def programs(parallel):
        config = dataclasses.replace(
            tiny_run.CONFIG, batch=16, parallel=parallel, steps_per_call=together, data=configs.Data(stream=stream)
        )
        model, places = build(config, (8, 8, 1), 17), jax.devices()[:devices]
        step = lowering.lower_train_step(model, data.load("digits"), places)
        return [lowered.as_text().partition("\n") for lowered in (step, lowering.lower_sampler(model, places))]

    for pmapped, mapped in zip(programs("pmap"), programs("shard_map"), strict=True):
        assert f"num_partitions = {devices} " in mapped[0] and mapped[2] == pmapped[2]


@pytest.mark.parametrize("by", ["pmap", "shard_map"])
def test_donated_arrays_are_gone_and_what_is_whole_comes_back_whole(by):
    def add(total, rows):
        return total + jax.lax.psum(rows, "d")

    mapped = process.map_over_devices(add, by, axis_name="d", in_axes=(None, 0), out_axes=None, donate_argnums=0)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
    total = jax.device_put(jnp.zeros(3), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    added = mapped(total, np.arange(24.0, dtype=np.float32).reshape(8, 3))
    np.testing.assert_array_equal(added, [84, 92, 100])
    assert total.is_deleted() and len(added.sharding.device_set) == 8
