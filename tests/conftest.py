"""The suite runs on the CPU, with eight virtual devices, compiles with few optimisations, and caches what it compiles.

OPTIMISED=1 in the environment compiles as the programs do.
"""

import importlib.metadata
import json
import os
import pathlib
import resource
import signal
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a test process for each core: threads would be in the way
# for the programs that tests start, too
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

OPTIMISED = bool(os.environ.get("OPTIMISED"))  # whether XLA compiles as it does for the programs' users
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if not OPTIMISED and importlib.metadata.version("jaxlib") < "0.11":  # which later ones do not know
    # unoptimised programs are compiled in half the time by XLA's older emitters, in one thread
    flags = os.environ.get("XLA_FLAGS", "").replace(QUICK, "")  # given by the process that starts the workers
    os.environ["XLA_FLAGS"] = f"{flags} {QUICK}".strip()

import jax
import pytest
import tiny_run

has_device_count = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
if os.environ["JAX_PLATFORMS"] == "cpu" and not has_device_count:
    jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", not OPTIMISED)  # tests compile far longer than they compute


@pytest.fixture
def key_reuse():
    """JAX refuses a program that uses a key twice.  It looks at every program anew, so only where keys are split."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def strict_promotion():
    """JAX refuses to promote types and ranks, as some users have it."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run of `tiny_run.CONFIG` with a checkpoint of random parameters, made once: to be read and never written."""
    return tiny_run.make_run(tmp_path_factory.mktemp("shared") / "run")


def pytest_collection_modifyitems(items):
    """The long ones first, so that no core is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# --- pytest --cost=FILE.json: what each test takes, for docs/testing.md

COMPILATION = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
BEFORE = pytest.StashKey[dict[str, float]]()


class Cost:
    """CPU seconds of each test with those of its child processes, and the seconds that JAX spends on its programs."""

    def __init__(self, path: str):
        self.path, self.tests = pathlib.Path(path), {}
        self.spent = dict.fromkeys(COMPILATION.values(), 0.0) | {"programs": 0}
        jax.monitoring.register_event_duration_secs_listener(self.count)

    def count(self, event: str, seconds: float, **_) -> None:
        if event in COMPILATION:
            self.spent[COMPILATION[event]] += seconds
            self.spent["programs"] += COMPILATION[event] == "compile"

    def now(self) -> dict[str, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = {"own": time.process_time(), "children": children.ru_utime + children.ru_stime}
        return seconds | {"wall": time.perf_counter()} | self.spent

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        item.stash[BEFORE] = self.now()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "teardown":
            now = self.now()
            cost = {name: round(now[name] - before, 4) for name, before in item.stash[BEFORE].items()}
            report.user_properties.append(("cost", cost))
        return report

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.tests[report.nodeid] = dict(report.user_properties).get("cost")

    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput"):
            self.path.write_text(json.dumps(self.tests, indent=0))


def pytest_addoption(parser):
    parser.addoption("--cost", metavar="FILE", help="write what each test takes: CPU seconds, and those of compilation")


def pytest_configure(config):
    if config.getoption("--cost"):
        config.pluginmanager.register(Cost(config.getoption("--cost")))


@pytest.fixture
def hangup():
    """SIGHUP as a terminal sends it: the programs that a test starts do not ignore it, as they would under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
