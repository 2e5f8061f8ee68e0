"""The suite runs on the CPU, with eight virtual devices, and caches what it compiles."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a test process for each core: threads would be in the way
# for the programs that tests start, too
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
if os.environ["JAX_PLATFORMS"] == "cpu" and not told:
    jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(scope="module")
def compiled_fast():
    """For files, or the rest of one, that compile far longer than they compute: XLA leaves most optimisations out.

    JAX takes a program that the process has compiled, however it was: so there are none, before and after.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def pytest_collection_modifyitems(items):
    """The long ones first, so that no core is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
