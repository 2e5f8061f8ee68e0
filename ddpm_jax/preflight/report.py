"""The preflight's report, as lines of text and as JSON."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax import data, tracking, trainer
from ddpm_jax.data.device_loader import is_streamed
from ddpm_jax.model import Model
from ddpm_jax.preflight import compile_stats, cost, local_measurement, lowering, topology

PROGRAM_NAMES = {"train": "training step", "sampler": "sampler", "evaluation": "held-out evaluation"}


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that the programs are compiled for."""

    devices: Sequence[Any]  # all of them
    hosts: int  # the machines that they are in
    slice: topology.Slice | None  # the TPU slice, or None for the local devices
    limit: int | None  # bytes of memory on each device, as far as known
    effort: float | None  # the compiler's effort, or None for its own default

    def describe(self) -> str:
        """Number and kind of devices, number of hosts, memory."""
        kind = f"{len(self.devices)} x {self.devices[0].device_kind}, {self.hosts} host{'s' * (self.hosts > 1)}"
        where = "" if self.slice is None else f" ({', '.join(filter(None, (self.slice.product, self.slice.name)))})"
        memory = "memory unknown" if self.limit is None else f"{format_bytes(self.limit)} of memory each"
        return f"{kind}{where}, {memory}"


@dataclasses.dataclass
class Report:
    """The programs of a config on a target."""

    name: str  # of the config
    model: Model
    images: data.Dataset
    target: Target
    flops: float  # floating-point operations of a training step on each device
    programs: dict[str, compile_stats.CompileStats]  # by the program's name
    measured: local_measurement.LocalMeasurement | None = None  # of steps, if the target is the local devices

    @property
    def config(self) -> configs.Config:
        """The model's."""
        return self.model.config

    @property
    def batch_per_device(self) -> int:
        """Images of a step on each device."""
        return self.config.batch // len(self.target.devices)

    @property
    def generation(self) -> str:
        """TPU generation of the slice; empty for the local devices."""
        return "" if self.target.slice is None else self.target.slice.name.partition(":")[0]

    def estimated_seconds(self, name: str) -> float | None:
        """Estimated seconds of a program; None without an estimate or clock rate."""
        clock, cycles = cost.CLOCK_HZ.get(self.generation), self.programs[name].cycles
        return sum(cycles.values()) / clock if clock and cycles else None

    @property
    def utilisation(self) -> float | None:
        """The training step's operations as a fraction of the device's peak over the estimated time."""
        seconds = self.estimated_seconds("train")
        return None if seconds is None else self.flops / seconds / cost.PEAK_BFLOAT16_FLOPS[self.generation]

    def bytes_during_training(self, name: str) -> int | None:
        """Bytes on each device while a program runs beside training's state and images."""
        train, other = self.programs.get("train"), self.programs[name]
        if name == "train" or train is None or train.memory is None or other.memory is None:
            return other.needed
        # previews take the average whole, see `trainer.whole_ema`: beside training's arguments, where it is in shares
        average = lowering.params_bytes(self.model) if self.config.shard_update else 0
        return train.memory.arguments + other.memory.peak - other.memory.arguments + average

    def fits(self, name: str) -> bool:
        """True if a program fits beside training's state and images."""
        memory, needed, limit = self.programs[name].memory, self.bytes_during_training(name), self.target.limit
        return memory is not None and (limit is None or max(memory.peak, needed or 0) <= limit)


def format_bytes(number: float) -> str:
    """Bytes to read: "15.75 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:,.2f} GiB"


def format_flops(number: float) -> str:
    """Operations to read: "281.7 GFLOP"."""
    power = min(4, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.4g} {['', 'K', 'M', 'G', 'T'][power]}FLOP"


def header_lines(report: Report) -> Iterator[str]:
    """The first lines: config, devices and data."""
    config, train = report.config, report.images.train
    shape = "x".join(map(str, train.shape[1:]))
    batch = f"batch {config.batch:,}: {report.batch_per_device:,} on each device"
    yield f"config     {report.name}, compute in {config.net.dtype}, {batch}"
    yield f"devices    {report.target.describe()}"
    there = format_bytes(lowering.device_pixel_bytes(config, report.images, len(report.target.devices)))
    how = "read ahead of each step, with " if is_streamed(train, config.data.stream) else ""
    yield f"data       {len(train):,} images {shape} {train.dtype}, {how}{there} on each device"


def program_lines(report: Report, name: str) -> Iterator[str]:
    """The lines of one program."""
    stats, limit = report.programs[name], report.target.limit
    of = "" if limit is None else f" of {format_bytes(limit)}"
    compiled = "" if stats.memory is None else f", compiled in {tracking.format_duration(stats.seconds)}"
    yield f"\n{PROGRAM_NAMES[name]}{compiled}"
    if stats.memory is None:
        needed = "more" if stats.needed is None else format_bytes(stats.needed)
        yield f"  does not fit: it needs {'at least ' * (not stats.seconds)}{needed}{of} ({stats.error})"
    else:
        memory = stats.memory
        yield (f"  arguments {format_bytes(memory.arguments)}, temporaries {format_bytes(memory.temporaries)}, peak "
               f"{format_bytes(memory.peak)}")  # fmt: skip
        needed = report.bytes_during_training(name) or memory.peak
        included = "" if name == "train" else ", with training's state and images"
        fraction = "" if limit is None else f", {needed / limit:.1%}"
        yield f"  {'fits' if report.fits(name) else 'does not fit'}: {format_bytes(needed)}{of}{fraction}{included}"
    if not report.fits(name):
        yield from (f"  try {proposal}" for proposal in proposals(report, name))
    if stats.cycles and report.target.effort is not None and report.target.effort >= 0:
        yield f"  {format_estimate(report, name)}"
    if name == "train":
        yield f"  {format_flops(report.flops)} per step and device"
        if stats.memory is not None:
            yield f"  {format_collectives(stats.collectives, len(report.target.devices))}"
            yield f"  {'the state is donated' if is_state_donated(report) else 'the state is NOT donated'}"


def format_estimate(report: Report, name: str) -> str:
    """The compiler's estimate of a program's time, as text."""
    stats, seconds = report.programs[name], report.estimated_seconds(name)
    total = sum(stats.cycles.values())
    kinds = ", ".join(f"{kind} {part / total:.0%}" for kind, part in stats.cycles.items())
    words = f"{total / 1e6:.1f} M cycles by the compiler's estimate ({kinds})"
    if seconds is None:
        return words
    words += f", {1000 * seconds:.3g} ms"
    return words + (f": {report.utilisation:.0%} of the peak in bfloat16" if name == "train" else "")


def format_collectives(collectives: Sequence[compile_stats.Collective], devices: int) -> str:
    """The collectives, as text."""
    parts, everywhere = [], f"all {devices} devices" if devices > 1 else "the one device"
    for each in collectives:
        over = f"over {everywhere}" if spans_all_devices(each, devices) else f"in {each.groups} groups of {each.size}"
        parts.append(f"{each.count} {each.kind} {over}")
    return ", ".join(parts) or "no operation between devices"


def spans_all_devices(collective: compile_stats.Collective, devices: int) -> bool:
    """True if it is one operation over all devices."""
    return collective.groups == 1 and collective.size == devices


def is_state_donated(report: Report) -> bool:
    """True if the new state reuses the old one's memory: the results that are not donated must be small."""
    memory = report.programs["train"].memory
    return memory is not None and memory.donated > 0 and memory.results < max(2**16, memory.donated / 100)


def proposals(report: Report, name: str) -> list[str]:
    """Proposals for a program that does not fit, the mildest change first."""
    config, limit = report.config, report.target.limit
    if name == "sampler":
        tile = report.model.tile_size(report.target.devices[0].platform)
        return [f"--sampling.tile {tile // 2}"] if tile > 1 else ["a smaller network"]
    if name == "evaluation":
        now = min(config.batch, config.evaluation.images)
        return [f"--evaluation.images {now // 2}"] if now > 1 else ["a smaller network"]
    devices, streamed = len(report.target.devices), is_streamed(report.images.train, config.data.stream)
    pixels, needed = lowering.device_pixel_bytes(config, report.images, devices), report.programs[name].needed
    whole = pixels + lowering.device_state_bytes(report.model, devices)
    if limit is not None and whole > limit:
        if not streamed:
            return [f"--data.stream True: at present each device holds all images ({format_bytes(pixels)})"]
        more = "devices with more memory: each device holds the whole state"
        return [more] if devices == 1 or config.shard_update else [trainer.SHARD_HINT, more]
    # memory other than images and state is assumed to grow with the device's batch
    room = 0.5 if limit is None or needed is None else min(0.99, (limit - whole) / max(needed - whole, 1))
    hints = trainer.step_oom_hints(config, devices, 0 if streamed else pixels, room)
    if report.target.slice is not None and report.batch_per_device > 1:
        more = topology.next_larger(report.target.slice)
        hints += [f"--topology {more}: the same batch over more devices"] if more else []
    return hints or ["devices with more memory: each device takes one image at a time already"]


def disk_line(report: Report) -> str:
    """The line of the disk space."""
    one = local_measurement.checkpoint_bytes(report.model)
    return (f"disk       {format_bytes(one)} per checkpoint, "
            f"{format_bytes(local_measurement.disk_bytes(report.model, report.images))} for the whole run "
            f"({report.config.keep} checkpoints kept, and samples)")  # fmt: skip


def measurement_lines(report: Report) -> Iterator[str]:
    """The lines of the local measurement."""
    measured = report.measured
    if measured is None:
        return
    yield ""
    if measured.used is None:
        yield f"memory     {format_bytes(measured.analysis)} by analysis; not measured: {measured.how}"
    else:
        yield (f"memory     {format_bytes(measured.analysis)} by analysis, {format_bytes(measured.used)} measured: "
               f"{measured.used / measured.analysis - 1:+.1%} ({measured.how})")  # fmt: skip
    if measured.process is not None:
        most = format_bytes(measured.process)
        yield f"           {most} was the peak of this process, libraries and compilation included"
    duration = tracking.format_duration(report.config.steps / measured.steps_per_s)
    yield (f"speed      {measured.steps_per_s:.3g} steps/s over {measured.timed} steps: {report.config.steps:,} steps "
           f"take {duration}, without samples and evaluations")  # fmt: skip


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    target, tpu_slice = report.target, report.target.slice
    return {
        "config": report.name,
        "settings": dataclasses.asdict(report.config),
        "images": {"number": len(report.images.train), "shape": list(report.images.train.shape[1:])},
        "place": {
            "topology": None if tpu_slice is None else tpu_slice.name,
            "product": None if tpu_slice is None else tpu_slice.product,
            "devices": len(target.devices),
            "kind": target.devices[0].device_kind,
            "hosts": target.hosts,
            "limit": target.limit,
            "effort": target.effort,
        },
        "flops": None if math.isnan(report.flops) else report.flops,
        "checkpoint_bytes": local_measurement.checkpoint_bytes(report.model),
        "disk_bytes": local_measurement.disk_bytes(report.model, report.images),
        "programs": {name: _program_json(report, name, stats) for name, stats in report.programs.items()},
        "measured": None if report.measured is None else report.measured._asdict(),
        "versions": {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__},
    }


def _program_json(report: Report, name: str, stats: compile_stats.CompileStats) -> dict[str, Any]:
    return {
        "fits": report.fits(name),
        "memory": None if stats.memory is None else stats.memory._asdict(),
        "needed": report.bytes_during_training(name),
        "cycles": stats.cycles,
        "estimated_seconds": report.estimated_seconds(name),
        "utilisation": report.utilisation if name == "train" else None,
        "collectives": [each._asdict() for each in stats.collectives],
        "collectives_span_all": all(spans_all_devices(each, len(report.target.devices)) for each in stats.collectives),
        "donated": is_state_donated(report) if name == "train" else None,
        "seconds": round(stats.seconds, 1),
        "said": stats.error,
    }
