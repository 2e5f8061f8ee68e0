"""The commands of `ddpm-jax convert`.

Each raises what the functions raise that read its source and write its result: FileNotFoundError, ValueError, and
ModuleNotFoundError for a format that takes a package which is not installed.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

from ddpm_jax import config as configs
from ddpm_jax import pipeline, process
from ddpm_jax.config import flags
from ddpm_jax.convert import diffusers, openai, options, original, plain, run_folder, tensor_files
from ddpm_jax.model import has_learned_variance

UNKNOWN_SOURCE = "unknown"
"""The data source of weights whose training data are unknown: nothing is loaded from it."""

LARGE_IMAGE = 64 * 64 * 3
"""Values per image above which training draws fewer previews."""


def from_diffusers(args: options.FromDiffusers) -> None:
    """Reads a folder of diffusers and writes a run."""
    source = diffusers.read_pipeline(pathlib.Path(args.path), null_label=args.null_label)
    config = args.images.apply_to(_adapt(source.config, source.shape))
    origin = run_folder.describe_origin("diffusers", source.files, source.tensors)
    image = args.images.image_metadata(config, source.shape)
    _write_run(
        args.workdir,
        run_folder.ImportedModel(config, image, source.tensors, source.rules, origin, fingerprint=source.fingerprint),
    )
    _print_differences(config)


def from_original(args: options.FromOriginal) -> None:
    """Reads the original's weights and writes a run."""
    path, images = pathlib.Path(args.path), args.images
    config = images.apply_to(configs.load(args.config))
    if config.net.kind != "unet":
        raise ValueError(f"--config {args.config}: net.kind is {config.net.kind!r}, and the original is a U-Net")
    weights = original.from_tensors(tensor_files.read_tensors(path))
    step = weights.step if args.step is None else args.step
    averaged = {f"{name}{original.EMA_SUFFIX}": tensor for name, tensor in (weights.ema or {}).items()}
    files, aside = tensor_files.checkpoint_files(path), list(weights.unused)
    origin = run_folder.describe_origin("original", files, {**weights.raw, **averaged}, aside=aside)
    image = images.image_metadata(config, args.shape)
    _write_run(
        args.workdir, run_folder.ImportedModel(config, image, weights.raw, weights.rules, origin, step, weights.ema)
    )


def from_openai(args: options.FromOpenAI) -> None:
    """Reads a checkpoint of OpenAI's and writes a run."""
    path = pathlib.Path(args.path)
    if args.family is not None and args.published is not None:
        raise ValueError("--published defines the network, and so do --family and --flags: give one of them")
    if args.family is None and args.flags:
        raise ValueError("--flags needs the project that they are of: --family improved or --family guided")
    if args.family is not None:
        model = openai.model_from_flags(args.family, args.flags, num_classes=args.num_classes)
        provenance = {"family": args.family, "flags": args.flags}
    else:
        name = args.published or path.stem
        model = openai.published_model(name)
        provenance = {"published": name, "trained": openai.PRESETS[name].trained_on}
    config = args.images.apply_to(_adapt(model.config, model.shape))
    tensors = tensor_files.read_tensors(path)
    origin = run_folder.describe_origin("openai", [path], tensors, **provenance)
    image = args.images.image_metadata(config, model.shape)
    _write_run(args.workdir, run_folder.ImportedModel(config, image, tensors, model.rules, origin, args.step))


def from_plain(args: options.FromPlain) -> None:
    """Reads what `to_plain` wrote and writes a run."""
    source = pathlib.Path(args.path)
    config, metadata, tensors = plain.read_folder(source)
    paths = [source / name for name in ("weights.safetensors", "config.json", "model.json")]
    origin = run_folder.describe_origin("plain", paths, tensors)
    step = metadata["step"] if isinstance(metadata.get("step"), int) else 0
    imported = run_folder.ImportedModel(
        config, metadata["image"], tensors, plain.rules, origin, step, fingerprint=metadata["fingerprint"]
    )
    _write_run(args.workdir, imported, f"the {metadata.get('weights')} weights, used as both")


def to_diffusers(args: options.ToDiffusers) -> None:
    """Writes a run's weights as diffusers reads them."""
    model = _load_model(args.run, args.model, args.sampling)
    with process.atomic_folder(pathlib.Path(args.out)) as part:
        metadata = {"fingerprint": model.fingerprint, "step": str(model.step), "weights": model.weights}
        diffusers.write_pipeline(part, model.config, model.shape, model.params, metadata)
    print(f"{model.describe()}")
    print(f"written   {args.out}: diffusers.DiffusionPipeline.from_pretrained({args.out!r})")
    _print_differences(model.config)
    if model.config.net.num_classes:
        none = f", {model.config.net.num_classes} for none" if diffusers.null_label(model.config) else ""
        print(f"note: its pipelines pass no labels; call unet(x, t, class_labels=...) in a loop of your own{none}")


def to_plain(args: options.ToPlain) -> None:
    """Writes a run's weights, schedule and config for anyone."""
    model = _load_model(args.run, args.model, flags.SamplingOptions())
    with process.atomic_folder(pathlib.Path(args.out)) as part:
        plain.write_folder(part, model)
    print(f"{model.describe()}")
    print(f"written   {args.out}: weights.safetensors, schedule.safetensors, config.json, model.json")


def _adapt(config: configs.Config, shape: Sequence[int]) -> configs.Config:
    """The config of weights whose training data are unknown, with fewer previews for large images."""
    previews = 16 if math.prod(shape) > LARGE_IMAGE else config.sampling.num
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=UNKNOWN_SOURCE),
        sampling=dataclasses.replace(config.sampling, num=previews),
    )


def _print_differences(config: configs.Config) -> None:
    for line in diffusers.differences(config):
        print(f"note: {line}")


def _load_model(run: str, weights: flags.Weights, sampling: flags.SamplingOptions) -> pipeline.Pipeline:
    return pipeline.Pipeline(run, step=weights.checkpoint, weights=weights.weights, sampling=sampling.overrides())


def _write_run(workdir: str, imported: run_folder.ImportedModel, weights: str = "") -> None:
    """Writes a run and prints a summary; `weights` describes their sets where that needs other words."""
    one_set = "one set of weights, used as raw and as averaged ones"
    weights = weights or ("raw and averaged weights" if imported.ema else one_set)
    parameters = run_folder.write_run(pathlib.Path(workdir), imported)
    image, sampling = imported.image, imported.config.sampling
    size, origin = "x".join(map(str, image["shape"])), imported.origin
    print(f"read      {', '.join(origin['files'])}: {len(origin['tensors'])} tensors, all used; {weights}")
    if origin.get("aside"):
        print(f"          {len(origin['aside'])} variables of its optimizer are ignored")
    print(f"network   {parameters:,} parameters for images {size} of {image['levels']} levels")
    fixed = f"mix {sampling.variance_mix:g}" if sampling.sampler == "ancestral" else f"eta {sampling.eta:g}"
    variance = "learned variance" if has_learned_variance(imported.config) else fixed
    clipped = "clipped" if sampling.clip else "not clipped"
    print(f"sampling  {sampling.sampler}, {sampling.steps} steps, {variance}, {clipped}")
    print(f"written   {workdir}, step {imported.step}: ddpm-jax sample {workdir}")
