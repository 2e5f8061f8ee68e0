"""The command `ddpm-jax preflight`: memory and cost of a config's programs, and their speed on local devices.

    ddpm-jax preflight CONFIG[:NAME] [--topology v5e:4x4] [--shape H W C] [any flag of the config]

Exit status 0 if everything fits, 1 if something does not, 2 for a wrong request, 6 if a file cannot be written, 7 if
steps that should fit do not.
"""

import dataclasses
import json
import pathlib
from typing import Annotated, Literal

import tyro

from ddpm_jax import config as configs
from ddpm_jax import process
from ddpm_jax.config import flags, ranges
from ddpm_jax.preflight import topology

QUICK = -1.0
"""The compiler's effort for a slice: a tenth of the time of its default for a large network, and nearly its memory."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compiles the programs of a config and reports memory, cost and speed before a long run.

    CONFIG and the flags of its fields are as in `ddpm-jax train`.  Exit status 1 if something does not fit.
    """

    config: Annotated[configs.Config, tyro.conf.arg(name="")]
    topology: flags.OptionalFlag[str] = None
    """A slice of TPUs to compile for, such as v5litepod-16, v4-32 or v5e:4x4 (default: the local devices)."""
    shape: tuple[Annotated[int, "[1, 65536]"], ...] = ()
    """Height, width and channels of integer images (default: those of the config's source)."""
    images: flags.OptionalFlag[ranges.Count] = None
    """With --shape: number of training images (default: 50,000)."""
    programs: tuple[Literal["train", "sampler", "evaluation"], ...] = ("train", "sampler", "evaluation")
    """Programs to compile."""
    effort: flags.OptionalFlag[Annotated[float, "[-1, 1]"]] = None
    """With --topology: the compiler's effort, from -1 (quick, the default) to 1; 0 is that of a real run.

    From 0 on, its estimate of the time is meaningful and is printed."""
    devices: flags.OptionalFlag[ranges.Devices] = None
    """On a CPU: number of JAX devices (default: one per core)."""
    out: flags.OptionalFlag[str] = None
    """A JSON file for the report."""
    text: flags.OptionalFlag[str] = None
    """A folder for the compiled programs, as the compiler prints them."""


def main(argv: list[str]) -> int:
    """Compiles, measures and prints; exit status 0 if everything fits."""
    args = flags.parse_with_config(Arguments, argv, usage="ddpm-jax preflight CONFIG [options]")
    if args.effort is not None and args.topology is None:
        raise ValueError(f"--effort needs --topology and must be in [-1, 1], got {args.effort}")
    if args.topology is not None and args.devices is not None:
        raise ValueError(f"--devices {args.devices} is for this machine's CPU: leave it out with --topology")
    if args.out is not None and pathlib.Path(args.out).is_dir():
        raise ValueError(f"--out must be a file, got the folder {args.out}")
    if args.topology is None:
        process.initialize(devices=args.devices)
    else:
        topology.set_environment()
        process.start_jax()

    from ddpm_jax.model import check

    check(args.config)
    with process.explain_write_errors(args.out or args.text or "."):
        return run(argv[0], args)


def run(name: str, args: Arguments) -> int:
    """The report, line by line as it becomes known."""
    from ddpm_jax import trainer
    from ddpm_jax.data.device_loader import is_streamed
    from ddpm_jax.model import build
    from ddpm_jax.preflight import compile_stats, local_measurement, lowering, report

    target = find_target(args)
    images = lowering.load_images(args.config, args.shape, args.images)
    model = build(args.config, images.train.shape[1:], images.levels)
    lowered_step = lowering.lower_train_step(model, images, target.devices)  # which also checks the batch
    lower = {
        "train": lambda: lowered_step,
        "sampler": lambda: lowering.lower_sampler(model, target.devices),
        "evaluation": lambda: lowering.lower_evaluation(model, images, target.devices),
    }
    flops = lowering.step_flops(model, images, len(target.devices))
    found = report.Report(name, model, images, target, flops, {})
    say(report.header_lines(found))
    options = {} if target.effort is None else {"exec_time_optimization_effort": target.effort}
    for program_name in args.programs:
        found.programs[program_name], compiled = compile_stats.compile_and_analyse(
            lower[program_name](), len(target.devices), target.limit, options
        )
        if args.text is not None and compiled is not None:
            folder = pathlib.Path(args.text)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{program_name}.txt").write_text(compiled.as_text() or "", encoding="utf-8")
        say(report.program_lines(found, program_name))
        if program_name == "train" and target.slice is None and compiled is not None and found.fits("train"):
            resident = 0 if is_streamed(images.train, args.config.data.stream) else images.train.nbytes
            with trainer.explain_step_oom(args.config, resident):
                found.measured = local_measurement.measure(model, images, compiled, target.devices)
    say(report.measurement_lines(found))
    say([report.disk_line(found)])
    if args.out is not None:
        process.atomic_write_text(pathlib.Path(args.out), json.dumps(report.to_json(found), indent=1) + "\n")
    return 0 if all(map(found.fits, found.programs)) else 1


def find_target(args: Arguments):
    """The slice that is named, or the local devices."""
    import jax

    from ddpm_jax.preflight import local_measurement, report

    if args.topology is None:
        devices = jax.local_devices()
        return report.Target(devices, 1, None, local_measurement.memory_limit(), None)
    jax.config.update("jax_enable_compilation_cache", False)  # programs for absent devices cannot be read back
    which = topology.find_slice(args.topology)
    devices = topology.devices(which)
    hosts = len({device.process_index for device in devices})
    return report.Target(
        devices, hosts, which, topology.memory_limit(devices), QUICK if args.effort is None else args.effort
    )


def say(lines) -> None:
    for line in lines:
        print(line, flush=True)
