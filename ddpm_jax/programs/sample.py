"""Draws images from a run.

    ddpm-jax sample runs/digits --num 64 --seed 0 --out samples [--sampler ddim --steps 50 ...]

What the run's checkpoint knows need not be said; a flag that is given replaces what the config says.  Image i is a
function of (checkpoint, seed, i, sampler): `--start 7 --num 1` makes image 7 of every other call.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from typing import Annotated, Literal

import tyro

from ddpm_jax import process
from ddpm_jax.config import flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """The run's folder."""
    num: int = 64
    """How many images."""
    seed: int = 0
    """The seed of the images."""
    start: int = 0
    """The first image's index."""
    out: flags.OptionalFlag[str] = None
    """Folder for samples.npz, images/, grid.png and manifest.json (default: one in RUN/samples named by this call)."""
    format: Literal["source", "npz", "png", "jpg", "webp", "bmp", "tiff", "npy"] = "source"
    """Files in images/ beside samples.npz, one an image: as those of the training folder, none (npz), or this."""
    model: tyro.conf.OmitArgPrefixes[flags.Weights] = flags.Weights()
    condition: tyro.conf.OmitArgPrefixes[flags.ConditionOptions] = flags.ConditionOptions()
    sampling: tyro.conf.OmitArgPrefixes[flags.SamplingOptions] = flags.SamplingOptions()
    edits: tyro.conf.OmitArgPrefixes[flags.EditOptions] = flags.EditOptions()
    batch: int | None = None
    """How many images to have in flight at once; it changes no image."""
    trajectory: bool = False
    """Also write the way there: trajectory.gif, and trajectory.png with x_t above the predicted x_0."""
    verify: str | None = None
    """A manifest.json: make its images again and say whether they are equal."""
    devices: flags.OptionalFlag[int] = None
    """On a CPU: into how many JAX devices to divide it (default: one per core)."""
    hosts: tyro.conf.OmitArgPrefixes[process.DistributedOptions] = process.DistributedOptions()


def main(argv: list[str]) -> int:
    """Draws and writes images; exit status 0, 1 if --verify finds others, 2 for a wrong request, 4 if interrupted."""
    args = flags.parse(Arguments, argv, prog="ddpm-jax sample")
    process.initialize(devices=args.devices, distributed=args.hosts)
    with process.abort_together("sample"), process.explain_write_errors(args.out or args.run):
        return draw(args) if args.verify is None else verify(args)


def draw(args: Arguments) -> int:
    import numpy as np

    from ddpm_jax import keys, pipeline, process
    from ddpm_jax.evaluate import sample_cache

    keys.check_images(args.seed, args.start, args.num)
    model = pipeline.Pipeline(
        args.run, step=args.model.checkpoint, weights=args.model.weights, sampling=args.sampling.overrides()
    )
    model = model.with_request(pipeline.parse_request(args.condition, args.sampling, model))
    model.request.check(model.config)
    edit = pipeline.make_edit(model, args.edits, start=args.start, num=args.num)
    if edit and args.trajectory:
        raise ValueError(
            "--trajectory shows chains from noise: leave it out with --inpaint, --init-image and --interpolate"
        )
    format = file_format(model, args.format)
    made = (edit or model).manifest() | {"seed": args.seed, "start": args.start, "num": args.num}
    out = pathlib.Path(args.out) if args.out else model.workdir / "samples" / output_name(made)
    if process.is_main_process():
        out.mkdir(parents=True, exist_ok=True)
    print(f"{model.describe()}; images {args.start}..{args.start + args.num - 1} of seed {args.seed}", flush=True)

    begun = time.perf_counter()
    parts = out / "samples.parts"
    if not draw_parts(parts, edit or model, args, made):
        return 4
    seconds = time.perf_counter() - begun
    drawn = np.concatenate(list(sample_cache.read_chunks(parts, 0, args.num))) if process.is_main_process() else None
    if drawn is not None:
        write_outputs(model, drawn, out, made)
        write_files(out / "images", drawn, args.start, format)
        shutil.rmtree(parts)
    print(f"{args.num} images in {seconds:.1f} s, compilation included: {out / 'grid.png'}")
    if args.trajectory:
        write_trajectory(model, args, drawn, out)
    elif process.is_main_process() and (out / "trajectory.gif").exists():
        print(f"note: {out} also holds a trajectory, which is of an earlier call")
    return 0


def output_name(made: dict) -> str:
    """A folder's name that no other call has: checkpoint, seed, sampler, and a hash of all that decides the images."""
    from ddpm_jax.evaluate import protocol

    decides = {name: value for name, value in made.items() if name not in ("machine", "versions")}
    how = made["sampling"]
    return f"{made['step']}-seed{made['seed']}-{how['sampler']}-{how['steps']}-{protocol.short_hash(decides)}"


def file_format(model, requested: str) -> str:
    """The format of the image files to write, "npz" for none.

    Raises:
        ValueError: if the format that is asked for cannot hold the run's images.
    """
    from ddpm_jax import data

    if requested not in ("source", "npz"):
        refusal = data.unwritable_reason(requested, model.shape, model.dtype)
        if refusal:
            raise ValueError(f"--format {requested}: images {refusal} (samples.npz is always written)")
        return requested
    came = model.format or "npz"
    if requested == "npz" or came == "npz":
        return "npz"
    if came != "gif" and not data.unwritable_reason(came, model.shape, model.dtype):
        return came
    print(f"the images came as {came} files, which are not written; these will be png files")
    return "png"


def write_files(folder: pathlib.Path, drawn, start: int, format: str) -> None:
    """Writes each image as a file that bears its index."""
    from ddpm_jax import data

    if format == "npz":
        return
    folder.mkdir(exist_ok=True)
    names = [f"{start + i:06d}.{format}" for i in range(len(drawn))]
    for name, image in zip(names, drawn, strict=True):
        data.write_image(folder / name, image, format)
    lossy = "; jpg is lossy, samples.npz is exact" if format == "jpg" else ""
    print(f"files     {folder / names[0]} to {names[-1]}{lossy}")
    others = len(list(folder.iterdir())) - len(names)
    if others:
        print(f"note: {folder} holds {others} other files, of other calls")


def write_outputs(model, drawn, out: pathlib.Path, made: dict) -> None:
    """Writes the images, a grid of them, and what says how they came about."""
    import numpy as np

    from ddpm_jax import data, pipeline

    manifest = made | {"sha256": [pipeline.image_hash(image) for image in drawn]}
    (out / "manifest.json").unlink(missing_ok=True)  # of an earlier call: it must not stand beside these images
    with (out / "samples.part").open("wb") as file:
        np.savez(file, arr_0=drawn)
    (out / "samples.part").replace(out / "samples.npz")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in manifest.items())
    (out / "manifest.part").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    (out / "manifest.part").replace(out / "manifest.json")
    label = {"run": f"{model.fingerprint} step {model.step}", "sampling": json.dumps(manifest["sampling"])}
    label |= {"asked": json.dumps(manifest["asked"])}
    picture = data.make_grid(drawn, model.levels)
    data.write_png(out / "grid.png", picture, scale=data.preview_scale(model.shape), text=label)


def draw_parts(folder: pathlib.Path, drawer, args: Arguments, made: dict) -> bool:
    """Draws what is asked for, part by part, after those that the same call has left there; False if interrupted."""
    from ddpm_jax import process
    from ddpm_jax.evaluate import sample_cache

    call, said = folder / "call.json", json.dumps(made)
    if process.is_main_process() and not (call.exists() and call.read_text(encoding="utf-8") == said):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        call.write_text(said, encoding="utf-8")
    process.any_process(False)  # no other looks into the folder before

    def missing(done):
        rest = {"start": args.start + done, "num": args.num - done}
        return (drawer.to_pixels(part.x) for part in drawer.draw(seed=args.seed, batch=args.batch, **rest))

    with process.explain_oom("a tile of images", lambda: process.sampling_oom_hints(drawer.tile)):
        return sample_cache.complete_parts(folder, args.num, missing, save_seconds=20)


def draw_images(drawer, args: Arguments):
    """The images asked for, from a model or an edit, as the data have them."""
    import numpy as np

    from ddpm_jax import process, tracking

    progress, parts = tracking.Progress(args.num, unit="images", active=process.is_main_process()), []
    with process.explain_oom("a tile of images", lambda: process.sampling_oom_hints(drawer.tile)):
        for part in drawer.draw(seed=args.seed, start=args.start, num=args.num, batch=args.batch):
            parts.append(drawer.to_pixels(part.x))
            progress.update(sum(map(len, parts)), {})
    progress.close()
    return np.concatenate(parts)


def write_trajectory(model, args: Arguments, drawn, out: pathlib.Path, frames: int = 21) -> None:
    """Writes the way to the first images, at evenly spread places of the chain."""
    import numpy as np

    from ddpm_jax import data

    chain = model.times
    keep = chain[np.unique(np.linspace(0, len(chain) - 1, frames).round().astype(int))]
    num = min(args.num, 16)
    parts = model.draw(seed=args.seed, start=args.start, num=num, save_at=[int(t) for t in keep])
    kept = np.concatenate([part.x for part in parts])  # [num, 2, frames, ...]
    if not process.is_main_process():
        return
    if not np.array_equal(model.to_pixels(kept[:, 0, -1]), drawn[:num]):
        print("note: the trajectory's last images differ from samples.npz in the last bits of their arithmetic")
    shown, scale = data.to_integer(kept, 256), data.preview_scale(model.shape)
    data.write_gif(out / "trajectory.gif", [data.make_grid(shown[:, 0, i], 256) for i in range(len(keep))], scale=scale)
    few = np.unique(np.linspace(0, len(keep) - 1, 11).round().astype(int))
    rows = [row[few] for image in kept[: min(num, 4)] for row in image]
    data.write_png(
        out / "trajectory.png", data.make_trajectory_grid(rows), scale=scale, text={"times": str(keep[few].tolist())}
    )
    print(f"the way there at t = {keep[few].tolist()}, x_t above the predicted x_0: {out / 'trajectory.png'}")


def verify(args: Arguments) -> int:
    """Makes the images of a manifest again and compares."""
    import numpy as np

    from ddpm_jax import data, pipeline

    path = pathlib.Path(str(args.verify))
    manifest = pipeline.read_manifest(path)
    model = pipeline.Pipeline(
        args.run, step=manifest["step"], weights=manifest["weights"], sampling=manifest["sampling"]
    )
    if model.fingerprint != manifest["fingerprint"]:
        raise ValueError(f"{path} was made from {manifest['fingerprint']}, {args.run} holds {model.fingerprint}")
    if model.x0_mse_digest != manifest.get("x0_errors"):
        raise ValueError(
            f"{path} rests on x0_errors {manifest.get('x0_errors')}, {args.run} holds {model.x0_mse_digest}"
        )
    model = model.with_request(pipeline.request_from_manifest(manifest["asked"], model))
    wanted = dataclasses.replace(args, seed=manifest["seed"], start=manifest["start"], num=manifest["num"])
    again = draw_images(pipeline.edit_from_manifest(model, manifest) or model, wanted)
    equal = [pipeline.image_hash(image) == sha for image, sha in zip(again, manifest["sha256"], strict=True)]
    file, differ = path.with_name("samples.npz"), len(equal) - sum(equal)
    try:
        with np.load(file, allow_pickle=False) as stored:
            before = stored["arr_0"]
        if [pipeline.image_hash(image) for image in before] != manifest["sha256"]:
            raise ValueError("it holds other images than the manifest tells of")
    except Exception as error:  # an archive may be missing, or damaged in any way
        same = f"all {len(equal)} images come out as the manifest has them, and are not what is in"
        other = f"{differ} of {len(equal)} images differ; how much cannot be said without"
        print(f"{other if differ else same} {file}: {error}")
        return 1
    if not differ:
        print(f"equal: all {len(equal)} images, bit for bit, here and in {file}")
        return 0
    off = np.abs(again.astype(np.float64) - before)
    here, there = model.manifest()["machine"], manifest["machine"]
    said = f"{differ} of {len(equal)} images differ (made on {there}, now on {here})"
    if isinstance(model.levels, data.ValueRange):
        off = off.max() / (model.levels.high - model.levels.low)
        within, tolerance = off < 1e-3, "at most 0.1 % of the range"
        print(f"{said}: by at most {off:.3g} of the range")
    else:
        share = float((off > 0).mean())
        within, tolerance = off.max() <= 1 and share < 1e-3, "at most 1 level, in under 0.1 % of values"
        print(f"{said}: by at most {off.max():g} levels, in {share:.4%} of values")
    print(f"within tolerance: {tolerance}" if within else "different")
    return 0 if within else 1
