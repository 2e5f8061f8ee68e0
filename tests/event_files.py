"""Event files of TensorBoard and transaction logs of W&B, read without their readers, every checksum verified."""

import json
import pathlib
import struct
import zlib
from collections.abc import Iterator

POLYNOMIAL = 0x82F63B78  # CRC-32C


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: pathlib.Path) -> Iterator[bytes]:
    """The records of an event file: length, its checksum, content, its checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        body = content[at + 12 : at + 12 + length]
        checksums = struct.unpack_from("<I", content, at + 8) + struct.unpack_from("<I", content, at + 12 + length)
        assert checksums == (masked(content[at : at + 8]), masked(body)), f"{path}: damaged at {at}"
        yield body
        at += 16 + length


def events(workdir: pathlib.Path):
    """The events of a run's only event file."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (workdir / "tensorboard").iterdir()
    return [Event.FromString(record) for record in records(path)]


def scalars(workdir: pathlib.Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of each number, in the order of the file."""
    return [
        (value.tag, event.step, value.simple_value)
        for event in events(workdir)
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    ]


def wandb_history(path: pathlib.Path) -> Iterator[dict]:
    """The lines of a run's history in a .wandb file: blocks of 32 KiB of (checksum, length, kind, content)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        crc, length, kind = struct.unpack_from("<IHB", content, at)
        part = content[at + 7 : at + 7 + length]
        assert crc == zlib.crc32(bytes([kind]) + part), f"{path}: damaged at {at}"
        parts, at = parts + part, at + 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record, parts = Record.FromString(parts), b""
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                yield {name: json.loads(value) for name, value in items.items()}
