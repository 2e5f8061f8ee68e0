"""The measurements for a GPU, in their cut-down form on the CPU, and the table of a trace's kernels."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from jax.profiler import ProfileData

from benchmarks import gpu, gpu_correctness, kernels

PROGRAM = """
  %fusion.1 = f32[8] fusion(%a), kind=kLoop, metadata={op_name="jit(f)/jvp(UNet)/net/mid/attn_1/norm/mul"}
  ROOT %gemm_fusion.2 = f32[8] fusion(%b), metadata={op_name="jit(f)/jvp(UNet)/net/mid/attn_1/q/dot_general"}
  %add.3 = f32[8] add(%c, %d), metadata={op_name="jit(f)/add"}
"""
KERNELS = [("fusion_1", 0, 400), ("gemm_fusion_2", 300, 200), ("sm90_xmma_fprop_bf16", 600, 300), ("add_3", 900, 100)]
"""Names, and starts and durations in microseconds."""


def trace(line: str):
    """A trace of a GPU that has run these kernels in a line of this name, and the host something longer."""
    names = "".join(f'event_metadata {{key: {i} value {{id: {i} name: "{k[0]}"}}}} ' for i, k in enumerate(KERNELS, 1))
    events = "".join(
        f"events {{metadata_id: {i} offset_ps: {start * 10**6} duration_ps: {duration * 10**6}}} "
        for i, (_, start, duration) in enumerate(KERNELS, 1)
    )
    text = (
        f'planes {{name: "/device:GPU:0" {names} lines {{name: "{line}" {events}}}}}'
        'planes {name: "/host:CPU" lines {name: "python" events {metadata_id: 1 duration_ps: 9000000000}}}'
    )
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(text))


def test_kernels_by_kind_and_the_gap_between_them():
    rows = kernels.table(trace("Stream #7(Compute)"), PROGRAM, steps=2, on_cpu=False)
    assert rows["step"] == {"ms": 0.5, "idle, share of it": 0.1}
    kinds = {"normalisation": 0.2, "attention": 0.1, "convolution": 0.15, "loss, optimizer and EMA": 0.05}
    assert rows["kinds, ms per step"] == kinds
    first, second = rows["kernel 1"], rows["kernel 2"]
    assert (first["name"], first["ms per step"], first["share"], first["calls per step"]) == ("fusion_1", 0.2, 0.4, 0.5)
    assert first["operation"].endswith("attn_1/norm/mul")
    assert (second["name"], second["operation"]) == ("sm90_xmma_fprop_bf16", "")


def test_a_trace_without_kernels_is_an_error():
    with pytest.raises(ValueError, match="no kernels, only /device:GPU:0, /host:CPU"):
        kernels.table(trace("Counters"), PROGRAM, steps=2, on_cpu=False)


def test_what_fails_or_has_no_time_is_named_and_the_rest_is_measured(tmp_path):
    report = gpu.Report(tmp_path / "training.json", {"commit": "abc"}, time.monotonic() + 60)
    assert not report.part("long", 90, lambda: {"row": 1})
    assert not report.part("broken", 1, lambda: sys.exit("a process ended"))
    assert report.part("measured", 1, lambda: {"row": {"ms": 2}})
    stored = json.loads((tmp_path / "training.json").read_text())
    assert stored == report.results
    assert list(stored["parts"]) == ["measured"] and stored["parts"]["measured"]["row"] == {"ms": 2}
    left, failed = report.complaints()
    assert left.startswith("training: left out: long: takes about 90 s, 60 s")
    assert failed == "training: failed: broken: SystemExit: a process ended"


@pytest.mark.slow
def test_a_golden_case_that_is_missed_is_named(tmp_path):
    shutil.copytree(gpu_correctness.ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(gpu_correctness.ROOT / "pyproject.toml", tmp_path)
    manifest = json.loads((tmp_path / "tests/goldens/goldens.json").read_text())
    case = next(case for case in manifest["cases"] if case["id"].startswith("f/ddim_step/"))
    file, key = tmp_path / "tests/goldens" / case["file"], case["arrays"]["sample_eta0.5"]["key"]
    arrays = dict(np.load(file))
    arrays[key] = arrays[key] + 0.01
    np.savez(file, **arrays)
    found = gpu_correctness.golden_cases(tmp_path, gpu_correctness.GOLDENS[-1:], limit=600)
    assert list(found["wrong"]) == [f"test_one_ddim_step[{case['id']}-float32]"]
    assert "sample_eta0.5" in found["wrong"][f"test_one_ddim_step[{case['id']}-float32]"]
    assert found["right"] == 3
    report = gpu.Report(tmp_path / "correctness.json", {}, time.monotonic() + 60)
    report.part("golden cases", 1, lambda: found)
    assert report.complaints()[0].startswith("correctness: wrong: test_one_ddim_step")


def run_small(tmp_path, *sections: str) -> dict[str, dict]:
    """The parts of sections, run on this machine with nothing left out and no failure."""
    command = [sys.executable, "-m", "benchmarks.gpu", *sections, "--out", str(tmp_path), "--small", "--peak", "2"]
    ran = subprocess.run(
        [*command, "--budget", "3000", "--commit", "abc"], cwd=gpu_correctness.ROOT, capture_output=True, text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = {section: json.loads((tmp_path / f"{section}.json").read_text()) for section in sections}
    for results in found.values():
        assert results["made"]["commit"] == "abc" and "jax" in results["made"]["versions"]
        assert not results["left out"] and not results["failed"]
    parts = {section: results["parts"] for section, results in found.items()}
    assert sum(len(rows) - 1 for part in parts.values() for rows in part.values()) == len(ran.stdout.splitlines())
    return parts


@pytest.mark.slow
def test_speeds_come_out_on_a_cpu(tmp_path):
    parts = run_small(tmp_path, "training", "sampling", "profile", "attention")
    step = parts["training"]["bfloat16, batch 16"]["ours"]
    assert step["ms per step"] == pytest.approx(1000 * 16 / step["images per second"], rel=0.01)
    assert step["compilation, seconds"] > 0 and step["most memory, bytes"] > 1e8

    assert len(parts["sampling"]) == 3
    for rows in parts["sampling"].values():
        assert rows["seconds for 50,000 images"] == pytest.approx(50_000 / rows["images per second"], rel=0.01)
        assert rows["share of time outside the network"] < 1

    (profile,) = parts["profile"].values()
    assert profile["kernel 1"]["ms per step"] <= sum(profile["kinds, ms per step"].values())
    assert min(profile["kinds, ms per step"][kind] for kind in ("normalisation", "rest of the network")) > 0

    attention = next(rows for name, rows in parts["attention"].items() if "float32" in name)
    assert attention["ours"]["largest error"] < 1e-5 and attention["ours, gradient"]["microseconds"] > 0
    assert "cuDNN" in attention["cudnn"]["refused"]


@pytest.mark.slow
def test_a_cpu_is_found_correct(tmp_path):
    found = run_small(tmp_path, "correctness")["correctness"]
    assert found["golden cases"]["right"] == 4 and not found["golden cases"]["wrong"]
    exact, rounded = (found["precision"][name] for name in ("float32, highest", "bfloat16"))
    assert exact["output, relative to the golden one"] < 1e-5 and exact["gradient, relative to the first row's"] == 0
    assert 1e-3 < rounded["output, relative to the golden one"] < 0.1
    assert 1e-3 < rounded["gradient, relative to the first row's"] < 0.1
    assert all(found["noise"]["equal to that of batch 16"].values())
    assert found["noise"]["largest difference from a CPU's"] == 0
    assert found["images, float32"]["tile 1"]["largest"] < 1e-3
    assert all(found["repeated runs"]["cached --xla_gpu_deterministic_ops=true"].values())
