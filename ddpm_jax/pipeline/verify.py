"""The images of a manifest, drawn again and compared."""

import pathlib

import numpy as np

from ddpm_jax import data, process, tracking
from ddpm_jax.pipeline.edits import edit_from_manifest
from ddpm_jax.pipeline.manifest import read_manifest
from ddpm_jax.pipeline.pipeline import Pipeline
from ddpm_jax.pipeline.requests import request_from_manifest
from ddpm_jax.pipeline.user_images import image_hash


def verify(run: str, path: pathlib.Path, batch: int | None = None) -> int:
    """Draws the images of a manifest again and prints how they compare: 0 if equal or within tolerance, else 1.

    Raises:
        FileNotFoundError, ValueError: as `read_manifest` and `Pipeline`, or if the run holds other weights.
    """
    manifest = read_manifest(path)
    pipe = Pipeline(run, step=manifest["step"], weights=manifest["weights"], sampling=manifest["sampling"])
    if pipe.fingerprint != manifest["fingerprint"]:
        raise ValueError(f"{path} was made from {manifest['fingerprint']}, {run} holds {pipe.fingerprint}")
    if pipe.x0_mse_digest != manifest.get("x0_errors"):
        raise ValueError(f"{path} rests on x0_errors {manifest.get('x0_errors')}, {run} holds {pipe.x0_mse_digest}")
    pipe = pipe.with_request(request_from_manifest(manifest["asked"], pipe))
    drawer, num, parts = edit_from_manifest(pipe, manifest) or pipe, manifest["num"], []
    process.check_equal_across_processes({"manifest and flags": [manifest, batch]})
    progress = tracking.Progress(num, unit="images", active=process.is_main_process())
    with process.explain_oom("a tile of images", lambda: process.sampling_oom_hints(drawer.tile)), progress:
        for part in drawer.draw(seed=manifest["seed"], start=manifest["start"], num=num, batch=batch):
            parts.append(drawer.to_pixels(part.x))
            progress.update(sum(map(len, parts)))
    again = np.concatenate(parts)
    equal = [image_hash(image) == sha for image, sha in zip(again, manifest["sha256"], strict=True)]
    file, differ = path.with_name("samples.npz"), len(equal) - sum(equal)
    try:
        with np.load(file, allow_pickle=False) as stored:
            before = stored["arr_0"]
        if [image_hash(image) for image in before] != manifest["sha256"]:
            raise ValueError("its images differ from those of the manifest")
    except Exception as error:  # an archive may be missing, or damaged in any way
        same = f"all {len(equal)} images equal those of the manifest, but not those in"
        other = f"{differ} of {len(equal)} images differ; the size of the difference is unknown without"
        print(f"{other if differ else same} {file}: {error}")
        return 1
    if not differ:
        print(f"equal: all {len(equal)} images, bit for bit, here and in {file}")
        return 0
    off = np.abs(again.astype(np.float64) - before)
    current_machine, recorded_machine = pipe.manifest()["machine"], manifest["machine"]
    line = f"{differ} of {len(equal)} images differ (made on {recorded_machine}, now on {current_machine})"
    if isinstance(pipe.levels, data.ValueRange):
        off = off.max() / (pipe.levels.high - pipe.levels.low)
        within, tolerance = off < 1e-3, "at most 0.1 % of the range"
        print(f"{line}: by at most {off:.3g} of the range")
    else:
        changed_fraction = float((off > 0).mean())
        within, tolerance = off.max() <= 1 and changed_fraction < 1e-3, "at most 1 level, in under 0.1 % of values"
        print(f"{line}: by at most {off.max():g} levels, in {changed_fraction:.4%} of values")
    print(f"within tolerance: {tolerance}" if within else "different")
    return 0 if within else 1
