"""Draws images from a run.

    ddpm-jax sample runs/digits --num 64 --seed 0 --out samples [--sampler ddim --steps 50 ...]

The config is read from the checkpoint; flags replace its values.  Image i is a function of (checkpoint, seed, i,
sampler): `--start 7 --num 1` draws image 7 of every other call.
"""

import dataclasses
import pathlib
import shutil
import time
from typing import Annotated, Literal

import tyro

from ddpm_jax import process
from ddpm_jax.config import flags, ranges


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draws images from a run.

    Image i depends on the checkpoint, the seed, i and the sampler alone: --start 7 --num 1 draws image 7 again.
    """

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """The run's folder."""
    num: ranges.NumImages = 64
    """Number of images."""
    seed: int = 0
    """The seed of the images."""
    start: int = 0
    """The first image's index."""
    out: flags.OptionalFlag[str] = None
    """Folder for samples.npz, images/, grid.png and manifest.json (default: in RUN/samples, named by the settings)."""
    format: Literal["source", "npz", "png", "jpg", "webp", "bmp", "tiff", "npy"] = "source"
    """Format of images/, one file per image: that of the training folder (source), none (npz), or another."""
    model: tyro.conf.OmitArgPrefixes[flags.Weights] = flags.Weights()
    condition: tyro.conf.OmitArgPrefixes[flags.ConditionOptions] = flags.ConditionOptions()
    sampling: tyro.conf.OmitArgPrefixes[flags.SamplingOptions] = flags.SamplingOptions()
    """Defaults: those of the run's config."""
    editing: tyro.conf.OmitArgPrefixes[flags.EditOptions] = flags.EditOptions()
    batch: flags.OptionalFlag[Annotated[int, "[1, 1048576]"]] = None
    """Images computed at once; does not change the images."""
    trajectory: bool = False
    """Also write the reverse process: trajectory.gif, and trajectory.png with x_t above the predicted x_0."""
    verify: flags.OptionalFlag[str] = None
    """A manifest.json: draw its images again, with the settings that it records, and report whether they are equal."""
    devices: flags.OptionalFlag[ranges.Devices] = None
    """On a CPU: number of JAX devices (default: one per core)."""
    hosts: tyro.conf.OmitArgPrefixes[process.DistributedOptions] = process.DistributedOptions()


def main(argv: list[str]) -> int:
    """Draws and writes images; exit status 0, 1 if --verify finds others, 2 for a wrong request, 4 if interrupted."""
    args = flags.parse(Arguments, argv, prog="ddpm-jax sample")
    own = Arguments(args.run, batch=args.batch, verify=args.verify, devices=args.devices, hosts=args.hosts)
    if args.verify is not None and args != own:
        raise ValueError(f"--verify draws what {args.verify} records: leave out all other flags but --batch, --devices")
    process.initialize(devices=args.devices, distributed=args.hosts)
    with process.abort_together("sample"), process.explain_write_errors(args.out or args.run):
        if args.verify is None:
            return draw(args)

        from ddpm_jax.pipeline.verify import verify

        return verify(args.run, pathlib.Path(args.verify), args.batch)


def draw(args: Arguments) -> int:
    """Checkpoint, condition, edit, images, files."""
    import numpy as np

    from ddpm_jax import keys, pipeline
    from ddpm_jax.pipeline import image_parts, manifest, outputs

    keys.check_images(args.seed, args.start, args.num)
    pipe = pipeline.Pipeline(
        args.run, step=args.model.checkpoint, weights=args.model.weights, sampling=args.sampling.overrides()
    )
    pipe = pipe.with_request(pipeline.parse_request(args.condition, args.sampling, pipe))
    pipe.request.check(pipe.config)
    edit = pipeline.make_edit(pipe, args.editing, start=args.start, num=args.num)
    if edit and args.trajectory:
        raise ValueError("--trajectory only shows sampling from noise: leave it out with images of your own")
    format = outputs.file_format(pipe, args.format)
    images = {"seed": args.seed, "start": args.start, "num": args.num}
    made = (edit or pipe).manifest() | images
    out = pathlib.Path(args.out) if args.out else pipe.workdir / "samples" / manifest.output_name(made)
    if process.is_main_process():
        out.mkdir(parents=True, exist_ok=True)
    print(f"{pipe.describe()}; images {args.start}..{args.start + args.num - 1} of seed {args.seed}", flush=True)

    start = time.perf_counter()
    parts = out / "samples.parts"
    if not image_parts.draw_parts(parts, edit or pipe, made, batch=args.batch, **images):
        return 4
    seconds = time.perf_counter() - start
    drawn = np.concatenate(list(image_parts.read_chunks(parts, 0, args.num))) if process.is_main_process() else None
    if drawn is not None:
        outputs.write_outputs(pipe, drawn, out, made, edit.pictures if edit else ())
        outputs.write_files(out / "images", drawn, args.start, format)
        shutil.rmtree(parts)
    print(f"{args.num} images in {seconds:.1f} s, compilation included: {out / 'grid.png'}")
    if args.trajectory:
        with process.explain_oom("a tile of trajectories", lambda: process.sampling_oom_hints(pipe.tile)):
            outputs.write_trajectory(pipe, drawn, out, **images)
    elif process.is_main_process() and (out / "trajectory.gif").exists():
        print(f"note: the trajectory in {out} is of an earlier call")
    return 0
