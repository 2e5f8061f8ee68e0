"""A function on every device, by `jax.pmap` or by `jax.jit` of `jax.shard_map`."""

from collections.abc import Callable, Sequence
from typing import Any

from ddpm_jax.config.fields import Parallel


def map_over_devices(
    function: Callable[..., Any],
    by: Parallel,
    *,
    axis_name: str,
    in_axes: tuple[Any, ...],
    out_axes: Any = 0,
    donate_argnums: int | tuple[int, ...] = (),
    devices: Sequence[Any] | None = None,
) -> Any:
    """`function` on every device, compiled at its first call; its results are `pmap`'s, bit for bit.

    `axis_name`, `in_axes` and so on are those of `jax.pmap`, but axes are 0 or None: with 0, an argument or a result is
    [local devices, ...], with None it is whole on every device; a tree of axes has one for each part.  With "shard_map"
    there is a device for each row, and arguments may also be global arrays on the mesh.

    Args:
        by: "pmap", or "shard_map" for `jax.jit` of `jax.shard_map` on the mesh (axis_name,) of the devices.
        devices: None is all, those of process 0 first.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    if by == "pmap":
        return jax.pmap(
            function, axis_name=axis_name, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate_argnums,
            devices=devices,
        )  # fmt: skip
    by_process = [device for i in range(jax.process_count()) for device in jax.local_devices(i)]
    mesh = Mesh(np.array(by_process if devices is None else devices), (axis_name,))

    def map_axes(of: Callable[..., Any], axes: Any, *trees: Any) -> Any:
        """of(axis, part of each tree), for each axis of a tree of them, which may be None."""
        return jax.tree.map(of, axes, *trees, is_leaf=lambda axis: axis is None)

    def spec_of(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(axis_name)

    def sharding_of(axis: int | None) -> NamedSharding:
        return NamedSharding(mesh, spec_of(axis))

    in_specs, out_spec = map_axes(spec_of, in_axes), map_axes(spec_of, out_axes)

    def on_device(*args):
        def row(axis, arg):
            return arg if axis is None else jax.tree.map(lambda leaf: jax.lax.squeeze(leaf, [0]), arg)

        def rows(axis, out):
            return out if axis is None else jax.tree.map(lambda leaf: jax.lax.expand_dims(leaf, [0]), out)

        return map_axes(rows, out_axes, function(*map_axes(row, in_axes, args)))

    # as in pmap, `function` itself sums over devices: with check_vma, gradients would be summed automatically too
    sharded = jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=out_spec, check_vma=False)
    compiled = jax.jit(
        sharded, in_shardings=map_axes(sharding_of, in_axes), out_shardings=map_axes(sharding_of, out_axes),
        donate_argnums=donate_argnums,
    )  # fmt: skip
    if jax.process_count() == 1:
        return compiled

    def on_this_process(*args):
        whole = multihost_utils.host_local_array_to_global_array(args, mesh, in_specs)
        return multihost_utils.global_array_to_host_local_array(compiled(*whole), mesh, out_spec)

    return on_this_process


def replicate(tree: Any, axis_name: str) -> Any:
    """The arrays of a tree, whole on every local device, for a function of `map_over_devices` with this axis.

    It then copies nothing, and is not compiled again for its own results.
    """
    return _put(tree, axis_name)


def spread(tree: Any, axis_name: str) -> Any:
    """The rows of the arrays [local devices, ...] of a tree, each on its device; see `replicate`."""
    return _put(tree, axis_name, axis_name)


def _put(tree: Any, axis_name: str, *axes: str) -> Any:
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.local_devices()), (axis_name,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))
