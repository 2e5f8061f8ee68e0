"""The files of examples/clusters/: their commands are those of the program, and what ends them starts them again."""

import os
import pathlib
import re
import signal
import subprocess

import pytest
import yaml

from ddpm_jax import process
from ddpm_jax.config import flags
from ddpm_jax.process import distributed
from ddpm_jax.programs import train

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "clusters"
UNTIL_COMPLETE = FOLDER / "until_complete.sh"
JOBSET = list(yaml.safe_load_all((FOLDER / "jobset.yaml").read_text()))
SKYPILOT = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())

PROGRAMS = {
    # ends with the statuses of the file `statuses` in turn; "0" is the last step, "0 early" a step before it
    "ddpm-jax": """
        printf '%s\\0' "$@" > "$HERE/arguments"; echo >> "$HERE/calls"
        read -r status early < <(sed -n "$(wc -l < "$HERE/calls")p" "$HERE/statuses")
        [[ $status != 0 || $early ]] || mkdir -p "$RUN/checkpoints/$STEPS"
        [[ $early != signal ]] || { trap 'exit 0' TERM; kill -USR1 $PPID; sleep 9 & wait; }
        exit "$status" """,
    "sleep": ":",
    "srun": """while [[ $1 == -* ]]; do shift; done; exec "$@" """,
    "scontrol": """echo "$*" > "$HERE/requeued" """,
    # a slice that is preempted while it trains for the first time
    "gcloud": """
        echo "$*" >> "$HERE/cloud"; number=$(grep -c " create " "$HERE/cloud")
        case "$*" in
          *describe*) [[ $number == 1 && $(tail -n 2 "$HERE/cloud") == *train* ]] && echo SUSPENDED || echo ACTIVE ;;
          *"ddpm-jax train"*) [[ $number == 2 ]] ;;
        esac""",
}


@pytest.fixture
def sandbox(tmp_path):
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run_script(sandbox, *command, statuses=("0",), **env):
    """The exit status of a script whose commands are PROGRAMS, and how often it has called ddpm-jax.

    It runs in the sandbox, as a checkout may have a .venv with the real ddpm-jax, which a script puts first.
    """
    (sandbox / "statuses").write_text("\n".join(statuses) + "\n")
    settings = {"PATH": f"{sandbox}:{os.environ['PATH']}", "HERE": sandbox, "RUN": sandbox / "run", "STEPS": "7"} | env
    env = os.environ | {name: str(value) for name, value in settings.items()}
    done = subprocess.run(
        ["bash", *map(str, command)], cwd=sandbox, env=env, capture_output=True, text=True, timeout=60
    )
    call_log = len((sandbox / "calls").read_text().splitlines()) if (sandbox / "calls").exists() else 0
    return done.returncode, call_log


def parsed(arguments):
    """The program's own reading of `ddpm-jax ARGUMENTS`."""
    assert arguments[0] == "train"
    args = flags.parse_with_config(train.Arguments, list(arguments[1:]), usage="")
    distributed.check_options(args.hosts)
    return args


def called(sandbox):
    return parsed((sandbox / "arguments").read_text().split("\0")[:-1])


def test_the_page_names_each_file():
    named = set(re.findall(r"`examples/clusters/([\w.]+)`", (ROOT / "docs" / "clusters.md").read_text()))
    assert named == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*s*h*")), ids=lambda path: path.name)
def test_a_script_is_one_of_bash(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize(
    "statuses, status, num_commands",
    [
        (["0"], 0, 1),
        (["5", "134", "0"], 0, 3),  # a lost process
        (["2"], 2, 1),  # a wrong request
        (["5", "7"], 7, 2),
        (["0 early"], 75, 1),  # another host was asked to stop
        (["0 signal"], 75, 1),  # this one was
    ],
)
def test_training_goes_on_until_it_is_complete(sandbox, statuses, status, num_commands):
    command = (UNTIL_COMPLETE, sandbox / "run", 7, "ddpm-jax", "train")
    assert run_script(sandbox, *command, statuses=statuses) == (status, num_commands)


# --- Slurm


@pytest.mark.parametrize(
    "before, status, requeued",
    [("0", 0, False), ("0 early", 0, True), ("137", 0, True), ("5", 0, True), ("2", 2, False), ("7", 7, False)],
)
def test_a_job_of_slurm_that_was_stopped_is_queued_again(sandbox, before, status, requeued):
    script = FOLDER / "slurm.sbatch"
    assert run_script(sandbox, script, statuses=[before], SLURM_JOB_ID="12") == (status, 1)
    assert (sandbox / "requeued").exists() == requeued
    args = called(sandbox)
    assert (args.workdir, args.config.steps) == (str(sandbox / "run"), 7)
    if requeued:
        assert (sandbox / "requeued").read_text() == "requeue 12\n"
        (sandbox / "requeued").unlink()
        (sandbox / "calls").unlink()
        assert run_script(sandbox, script, statuses=[before], SLURM_RESTART_COUNT="50")[0] == int(before.split()[0])
        assert not (sandbox / "requeued").exists()


def test_the_directives_of_slurm_come_first_and_name_a_signal_that_training_heeds():
    lines = (FOLDER / "slurm.sbatch").read_text().splitlines()
    directives = dict(
        re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups() for line in lines if "#SBATCH" in line
    )
    first_command = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert not any("#SBATCH" in line for line in lines[first_command:])
    name, _, seconds = directives["signal"].partition("@")
    assert getattr(signal, f"SIG{name}") in process.Interrupt.SIGNALS and int(seconds) >= 120
    assert {"requeue", "open-mode", "time"} <= set(directives)
    # JAX gives task i of a node its i-th GPU, so a task sees all of them
    assert directives["gres"] == f"gpu:{directives['ntasks-per-node']}"


# --- Cloud TPU


def test_a_preempted_slice_is_requested_again(sandbox):
    assert run_script(sandbox, FOLDER / "tpu_slice.sh", ZONE="z", SHARE="10.0.0.2:/share")[0] == 0
    commands = (sandbox / "cloud").read_text()
    verbs = re.findall(r"^compute tpus (?:queued-resources|tpu-vm) (\w+)", commands, re.M)
    once = ["create", "describe", "scp", "ssh", "ssh"]
    assert verbs == [*once, "describe", "delete", *once, "delete"]
    train_command = re.search(r"until_complete\.sh (\S+) (\S+) +ddpm-jax (.*)", commands)
    args = parsed(train_command[3].split())
    assert (args.workdir, str(args.config.steps)) == (train_command[1], train_command[2])


# --- Kubernetes


def test_the_pods_of_a_jobset_are_those_that_jax_connects(sandbox):
    account, role, binding, jobset = JOBSET
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert {("pods", "list"), ("jobs", "get"), ("services", "list")} <= allowed
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert group["replicas"] == 1 and job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0 and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    (container,) = pod["containers"]
    bash, script, run, steps = container["command"]
    assert bash == "bash" and script == f"/ddpm-jax/{UNTIL_COMPLETE.relative_to(ROOT)}"
    args = parsed(container["args"][1:])
    assert (args.workdir, str(args.config.steps)) == (run, steps)
    assert [each["mountPath"] for each in container["volumeMounts"]] == ["/" + run.split("/")[1]]


# --- SkyPilot


def test_a_node_of_skypilot_connects_to_the_first(sandbox):
    env = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    assert run_script(sandbox, "-c", SKYPILOT["run"], **env) == (0, 1)
    args = called(sandbox)
    assert (args.hosts.coordinator, args.hosts.processes, args.hosts.process) == ("10.0.0.1:12345", 2, 1)
    assert (args.workdir, args.config.steps) == (str(sandbox / "run"), 7)
    assert SKYPILOT["envs"]["RUN"].startswith(tuple(SKYPILOT["file_mounts"]))
    assert SKYPILOT["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
