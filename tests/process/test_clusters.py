"""Clusters: each that JAX detects connects two processes of this machine, by the variables of its launcher."""

import contextlib
import functools
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import jax
import pytest

from ddpm_jax.process import DistributedOptions, distributed

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHERS = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_COMPLETION_", "JAX_COORDINATOR")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


# --- how many processes there are


@pytest.mark.parametrize(
    "env, number",
    [
        ({}, None),
        # a batch script without srun
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}, 2),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "2"}, 1),  # a shell of salloc, in a job of two tasks
        ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "4"}, 4),  # mpirun in such a step
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, 4),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_PROCESS_ADDRESSES": "local", "TPU_WORKER_HOSTNAMES": "a,b"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, 2),
        ({"TPU_PROCESS_ADDRESSES_PATH": "/hosts", "TPU_WORKER_HOSTNAMES": "a"}, 0),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 1),  # a notebook's pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, 0),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TPU_WORKER_HOSTNAMES": "a,b"}, 2),
    ],
)
def test_a_launcher_names_the_number_of_processes(monkeypatch, env, number):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched_processes() == number


def test_a_launcher_whose_cluster_jax_does_not_detect_is_an_error(monkeypatch):
    """As Open MPI 5 with jax 0.10, or a pod of an Indexed Job without the Kubernetes client."""

    def initialize(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    distributed.connect_processes(DistributedOptions())
    for env, number in (("OMPI_COMM_WORLD_SIZE", "4"), ("TPU_PROCESS_ADDRESSES_PATH", "several")):
        monkeypatch.setenv(env, "4")
        alone = r"the processes did not connect \(--processes 1: alone\): "
        with pytest.raises(ValueError, match=alone + f"{number} were launched, but JAX detects no cluster"):
            distributed.connect_processes(DistributedOptions())
        monkeypatch.delenv(env)


def test_one_process_of_a_cluster_runs_alone_on_request(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setattr(jax.distributed, "initialize", None)
    distributed.connect_processes(DistributedOptions(processes=1))
    with pytest.raises(ValueError, match="did not connect"):
        distributed.connect_processes(DistributedOptions())


# --- connections

LAUNCHED = {
    "Slurm": {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "<index>", "SLURM_LOCALID": "<index>",
    },
    "Open MPI": {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "<index>", "OMPI_COMM_WORLD_LOCAL_RANK": "<index>",
    },
    "TPU of GKE": {
        "TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": "<index>", "GCE_METADATA_IP": "<server>",
    },
    "TPU of Compute Engine": {"GCE_METADATA_IP": "<server>"},
    "Kubernetes": {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "<index>", "HOSTNAME": "localhost"},
}  # fmt: skip
"""What the launchers set for process <index> of two; <server> is its metadata server."""

CONNECT = """
import builtins, io, json, os, socket, sys, types
import jax
from jax._src import distributed as jax_distributed
from jax.extend import backend
from ddpm_jax.process import DistributedOptions, distributed

# a Kubernetes cluster: its API, with the first Job of a JobSet, and its names
def record(**fields):
    return types.SimpleNamespace(**fields)
owner = record(controller=True, kind="Job")
pod = record(metadata=record(name="pod", labels={"job-name": "train"}, owner_references=[owner]))
labels = {"jobset.sigs.k8s.io/jobset-name": "set"}
job = record(metadata=record(name="train", labels=labels), spec=record(parallelism=2))
core = record(list_namespaced_pod=lambda **_: record(items=[pod]))
batch = record(read_namespaced_job=lambda **_: job)
exceptions = record(ApiException=RuntimeError)
client = record(CoreV1Api=lambda: core, BatchV1Api=lambda: batch, exceptions=exceptions)
sys.modules["kubernetes"] = record(config=record(load_incluster_config=lambda: None), client=client)
open_file, connect = open, jax_distributed._jax.get_distributed_runtime_client
builtins.open = lambda path, *args, **kwargs: (
    io.StringIO("default") if str(path).endswith("serviceaccount/namespace") else open_file(path, *args, **kwargs))
socket.gethostbyname = lambda name: "127.0.0.1"
jax_distributed._jax.get_distributed_runtime_client = lambda address, *args, **kwargs: connect(
    address.replace("train-0.set:", "localhost:"), *args, **kwargs)

distributed._CONNECT_TIMEOUT, before = 100, dict(os.environ)
for cluster, env in json.load(sys.stdin).items():
    os.environ.update(env)
    if "GCE_METADATA_IP" in env:
        os.environ.pop("TPU_SKIP_MDS_QUERY")  # set by JAX on a machine without a TPU
    distributed.connect_processes(DistributedOptions())
    print(json.dumps([cluster, jax.process_index(), jax.process_count()]), file=sys.__stdout__, flush=True)
    jax.distributed.shutdown()
    backend.clear_backends()
    os.environ.clear()
    os.environ.update(before)
"""


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of one host of a TPU slice of two."""

    def __init__(self, index, *args):
        self.answers = {"agent-worker-number": str(index), "worker-network-endpoints": "u:u:127.0.0.1,u:u:127.0.0.1"}
        super().__init__(*args)

    def do_GET(self):
        self.send_response(200 if self.headers["Metadata-Flavor"] == "Google" else 403)
        self.end_headers()
        self.wfile.write(self.answers.get(self.path.rsplit("/", 1)[-1], "").encode())

    def log_message(self, *args):
        pass


def test_each_cluster_that_jax_detects_connects_its_processes():
    with contextlib.ExitStack() as stack:
        # a port for each cluster: at the port of the last one, its server may still be ending
        free = [stack.enter_context(socket.socket()) for _ in LAUNCHED]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = [str(each.getsockname()[1]) for each in free]
        for each in free:
            each.close()
        launched = {
            name: {**env, "JAX_COORDINATOR_PORT": port}
            for (name, env), port in zip(LAUNCHED.items(), ports, strict=True)
        }
        forced = {"JAX_PLATFORMS": "cpu", "JAX_FORCE_TPU_INIT": "1"}
        processes = []
        for index in range(2):
            server = stack.enter_context(
                http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Metadata, index))
            )
            threading.Thread(target=server.serve_forever).start()
            stack.callback(server.shutdown)
            process = subprocess.Popen(
                [sys.executable, "-c", CONNECT], cwd=ROOT, env=os.environ | forced, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            stack.callback(process.kill)
            env = json.dumps(launched).replace("<index>", str(index))
            process.stdin.write(env.replace("<server>", f"127.0.0.1:{server.server_port}"))
            process.stdin.close()
            process.stdin = None
            processes.append(process)
        outputs = [process.communicate(timeout=300) for process in processes]
    for index, (printed, error) in enumerate(outputs):
        assert [json.loads(line) for line in printed.splitlines()] == [[name, index, 2] for name in LAUNCHED], error
