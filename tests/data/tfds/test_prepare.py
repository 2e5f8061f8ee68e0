"""Data sets that are prepared here: bit for bit what they were made of, however often they were interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data import sources
from ddpm_jax.data.tfds import checksums, prepare
from ddpm_jax.data.tfds import reader as tfds_reader
from ddpm_jax.process import FolderLock
from ddpm_jax.programs.cli import call as main

ROOT = Path(__file__).parents[3]


def call(*arguments):
    return [sys.executable, "-W", "error", "-m", "ddpm_jax", "prepare", *map(str, arguments)]


def noise(*shape, dtype=np.uint8):
    return np.random.RandomState(0).randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stack(reader):
    return np.stack([reader[i] for i in range(len(reader))])


def shards_in(folder):
    record = folder / "prepare.json"
    return len(json.loads(record.read_text())["shards"]) if record.exists() else 0


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A source that takes some seconds, and what becomes of it without interruption."""
    home = tmp_path_factory.mktemp("noisy")
    labels = np.arange(400) % 7
    np.savez(home / "a.npz", images=noise(400, 96, 96, 3), labels=labels)
    arguments = [f"npz:{home / 'a.npz'}", "--name", "noisy", "--shards", "40"]
    assert main(["prepare", *arguments, "--out", str(home / "straight")]) == 0
    return arguments, contents(home / "straight" / "noisy" / "1.0.0")


# What is made


def test_prepared_digits_are_the_digits(tmp_path, capsys):
    assert main(["prepare", "digits", "--name", "figures", "--out", str(tmp_path), "--shards", "3"]) == 0
    assert f"read it as tfds:figures@{tmp_path}" in capsys.readouterr().out
    train, test = tfds_reader.open_readers(f"tfds:figures@{tmp_path}")
    digits = data.load("digits")
    for part, images, labels in ((train, digits.train, digits.train_labels), (test, digits.test, digits.test_labels)):
        assert (part.shape, part.dtype, part.levels, part.label_names) == ((8, 8, 1), np.uint8, 17, digits.label_names)
        np.testing.assert_array_equal(stack(part), images)
        np.testing.assert_array_equal(part.labels, labels)
    assert len(list(tmp_path.glob("figures/1.0.0/*.array_record-*-of-00003"))) == 3


def test_captions_of_several_lines_stay_as_they_are(tmp_path):
    assert main(["prepare", "pairs", "--name", "pairs", "--out", str(tmp_path)]) == 0
    train, test = tfds_reader.open_readers(f"tfds:pairs@{tmp_path}")
    pairs = data.load("pairs")
    assert (train.captions, test.captions) == (pairs.train_captions, pairs.test_captions)


def test_tfds_reads_what_was_prepared(tmp_path):
    images = noise(20, 5, 6, 3)
    np.savez(tmp_path / "a.npz", images=images[:15], test=images[15:], labels=np.arange(15), test_labels=np.arange(5))
    assert main(["prepare", f"npz:{tmp_path / 'a.npz'}", "--name", "mine", "--out", str(tmp_path)]) == 0
    for split, expected in (("train", images[:15]), ("test", images[15:])):
        found = tfds.data_source("mine", split=split, data_dir=str(tmp_path))  # decoded by TFDS
        np.testing.assert_array_equal([example["image"] for example in found], expected)
        assert [int(example["label"]) for example in found] == list(range(len(expected)))
    builder = tfds.builder("mine", data_dir=str(tmp_path))
    assert builder.info.features["label"].num_classes == 15
    assert builder.info.metadata["ddpm_jax"]["levels"] == 256


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((7, 5), np.uint8, "Image"),
        ((7, 5, 2), np.uint8, "Image"),
        ((7, 5, 4), np.uint8, "Image"),
        ((7, 5, 6), np.uint8, "Tensor"),
        ((7, 5), np.uint16, "Image"),
        ((7, 5, 3), np.uint16, "Tensor"),
    ],
)
def test_every_kind_of_image_comes_back(tmp_path, shape, dtype, kind):
    np.savez(tmp_path / "a.npz", images=noise(12, *shape, dtype=dtype))
    source, home = f"npz:{tmp_path / 'a.npz'}", tmp_path / r"sets[1]\a"  # a pattern to some libraries
    assert main(["prepare", source, "--name", "mine", "--out", str(home), "--held-out", "0.25"]) == 0
    train, test = tfds_reader.open_readers(f"tfds:mine@{home}")
    expected = data.load(source, held_out=0.25)
    np.testing.assert_array_equal(stack(train), expected.train)
    np.testing.assert_array_equal(stack(test), expected.test)
    assert (train.labels, train.dtype, train.levels) == (None, dtype, expected.levels)
    assert type(tfds.builder("mine", data_dir=str(home)).info.features["image"]).__name__ == kind


def test_floating_point_volumes_come_back_with_their_range(tmp_path):
    volumes = np.linspace(-3, 7, 12 * 2 * 4 * 4).reshape(12, 2, 4, 4, 1).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=volumes)
    command = ["prepare", f"npz:{tmp_path / 'a.npz'}", "--name", "mine", "--out", str(tmp_path)]
    assert main([*command, "--range", "-3", "7"]) == 0
    train, test = tfds_reader.open_readers(f"tfds:mine@{tmp_path}")
    assert train.levels == (-3, 7) and train.shape == (2, 4, 4, 1)
    np.testing.assert_array_equal(np.sort(np.concatenate([stack(train), stack(test)]), axis=0), volumes)


def test_a_folder_keeps_its_names_captions_and_resized_images(tmp_path):
    folder, rows = tmp_path / "pictures", ["file,label,caption"]
    folder.mkdir()
    for i in range(12):
        Image.fromarray(noise(9 + i, 14, 3)).save(folder / f"{i:02d}.png")
        rows.append(f"{i:02d}.png,{('cat', 'dog')[i % 2]},number {i}")
    (folder / "table.csv").write_text("\n".join(rows))
    arguments = [f"folder:{folder}", "--name", "pets", "--out", str(tmp_path), "--resolution", "8"]
    assert main(["prepare", *arguments]) == 0
    expected = sources.open_readers(f"folder:{folder}", resolution=(8,))
    for part, other in zip(tfds_reader.open_readers(f"tfds:pets@{tmp_path}"), expected, strict=True):
        np.testing.assert_array_equal(stack(part), stack(other))
        np.testing.assert_array_equal(part.labels, other.labels)
        assert (part.captions, part.label_names) == (other.captions, other.label_names)
        assert part.label_names == ("cat", "dog")


# Interruptions


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(noisy, tmp_path, kills):
    arguments, straight = noisy
    whole = tmp_path / "noisy" / "1.0.0"
    part = whole.with_name("1.0.0.part")
    finished_shards = []
    for _ in range(kills):
        process = subprocess.Popen(call(*arguments, "--out", tmp_path), cwd=ROOT, stderr=subprocess.DEVNULL)
        while shards_in(part) < len(finished_shards) + 3:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not whole.exists()
        with pytest.raises(FileNotFoundError, match="no data set noisy; there are noisy"):
            tfds_reader.open_readers(f"tfds:noisy@{tmp_path}")
        finished_shards = sorted(path for path in part.iterdir() if "array_record" in path.name)
    # what is kept is used, unless it was damaged
    before = [path.stat().st_mtime_ns for path in finished_shards]
    damaged = bytearray(finished_shards[0].read_bytes())
    damaged[70] ^= 1
    finished_shards[0].write_bytes(damaged)
    assert main(["prepare", *arguments, "--out", str(tmp_path)]) == 0
    assert contents(whole) == straight
    after = [(whole / path.name).stat().st_mtime_ns for path in finished_shards]
    assert after[1:] == before[1:] and after[0] > before[0]
    assert not part.exists()


def test_the_record_is_not_sealed_nor_what_a_killed_process_has_left_of_it(tmp_path):
    for name in ("features.json", "prepare.json", "prepare.json.part"):
        (tmp_path / name).write_text("{}")
    assert list(checksums.folder_checksums(tmp_path)) == ["features.json"]


def test_sigterm_keeps_whole_shards_and_says_so(noisy, tmp_path, monkeypatch, capsys):
    arguments, straight = noisy
    part, write = tmp_path / "noisy" / "1.0.0.part", prepare._write_json

    def interrupted(path, record):
        write(path, record)
        if len(record["shards"]) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(prepare, "_write_json", interrupted)
    assert main(["prepare", *arguments, "--out", str(tmp_path)]) == 4
    monkeypatch.undo()
    message = capsys.readouterr().out
    shards = json.loads((part / "prepare.json").read_text())["shards"]
    num_prepared = sum(shard["examples"] for shard in shards.values())
    assert 0 < num_prepared < 400
    assert f"interrupted: {num_prepared} images are in {part}; the same command continues" in message
    assert main(["prepare", *arguments, "--out", str(tmp_path)]) == 0
    assert contents(tmp_path / "noisy" / "1.0.0") == straight


def test_a_finished_data_set_is_not_made_again(tmp_path, capsys):
    arguments = ["prepare", "digits", "--name", "figures", "--out", str(tmp_path)]
    assert main(arguments) == 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert main(arguments) == 0
    assert "exists, made by the same command" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


# Bad images


def bad_set(home):
    """Thirty images as a data set, the tenth of which cannot be read."""
    np.savez(home / "a.npz", images=noise(30, 6, 6, 3), test=noise(2, 6, 6, 3))
    assert main(["prepare", f"npz:{home / 'a.npz'}", "--name", "good", "--out", str(home)]) == 0
    (file,) = home.glob("good/1.0.0/*train.array_record*")
    content, offset = bytearray(file.read_bytes()), -1
    for _ in range(10):
        offset = bytes(content).index(b"IHDR", offset + 1)
    content[offset] ^= 255
    file.write_bytes(content)
    return f"tfds:good@{home}"


def test_bad_images_are_named_and_can_be_left_out(tmp_path, capsys):
    source = bad_set(tmp_path)
    arguments = ["prepare", source, "--name", "rest", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert f"{source}: image 9 of the split 'train' cannot be read: " in (message := capsys.readouterr().err)
    assert "(--skip-bad leaves it out)" in message
    assert main([*arguments[:2], "--name", "less", *arguments[4:], "--skip-bad"]) == 0
    message = capsys.readouterr().out
    assert "left out: " in message and "image 9 of the split 'train'" in message and "; 1 left out" in message
    train, _ = tfds_reader.open_readers(f"tfds:less@{tmp_path}")
    np.testing.assert_array_equal(stack(train), np.delete(noise(30, 6, 6, 3), 9, axis=0))


def test_a_shard_without_any_good_image_is_refused(tmp_path, capsys):
    arguments = ["prepare", bad_set(tmp_path), "--name", "less", "--out", str(tmp_path), "--skip-bad", "--shards", "30"]
    assert main(arguments) == 2
    assert "none of the images 9 to 9 can be read, the first: tfds:good" in capsys.readouterr().err


def test_a_data_set_is_sealed_and_damage_is_named_before_it_is_read(tmp_path):
    prepare.run(options(tmp_path, shards=2))
    folder = tmp_path / "figures" / "1.0.0"
    first_shard, second_shard = sorted(folder.glob("*train.array_record*"))
    for path in (first_shard, folder / "label.labels.txt", folder / "metadata.json", folder / "features.json"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        with pytest.raises(ValueError, match=f"{path.name} is damaged: it is not what was prepared; prepare the data"):
            sources.open_readers(f"tfds:figures@{tmp_path}")
        path.write_bytes(whole)
    contents = first_shard.read_bytes(), second_shard.read_bytes()
    first_shard.write_bytes(contents[1])
    second_shard.write_bytes(contents[0])
    with pytest.raises(ValueError, match=f"{first_shard.name} is damaged: it is not what was prepared"):
        sources.open_readers(f"tfds:figures@{tmp_path}")
    first_shard.unlink()
    with pytest.raises(ValueError, match=f"{first_shard.name} is missing: prepare the data set again"):
        sources.open_readers(f"tfds:figures@{tmp_path}")
    first_shard.write_bytes(contents[0])
    second_shard.write_bytes(contents[1])
    assert len(sources.open_readers(f"tfds:figures@{tmp_path}")[0]) == 1500
    for text in ('{"seal": [1]}', "[]", "{", '{"seal": 3}'):
        (folder / "prepare.json").write_text(text)
        with pytest.raises(ValueError, match=r"prepare\.json: damaged: "):
            sources.open_readers(f"tfds:figures@{tmp_path}")


def test_of_a_large_file_size_and_ends_are_sealed(tmp_path):
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    before = checksums.folder_checksums(tmp_path)
    for content in (bytes(3 << 20)[1:], b"1" + bytes(3 << 20)[1:], bytes(3 << 20)[1:] + b"1"):
        (tmp_path / "a").write_bytes(content)
        assert checksums.folder_checksums(tmp_path) != before


# What is refused


def options(home, source="digits", name="figures", **changes):
    return prepare.Prepare(source=source, name=name, out=str(home), **changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "My-set"}, "--name must be of lower-case letters, digits and _, a letter first, got 'My-set'"),
        ({"shards": 1501}, "--shards 1501 are more than the 1500 images of the split train"),
        ({"resolution": 16}, "digits: images 8x8 are not resized; --resolution is for folder: and tfds:"),
        ({"held_out": 1.0}, "expected a fraction 0 < held_out < 1, got 1.0"),
    ],
)
def test_options_are_refused(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        prepare.run(options(tmp_path, **changes))
    assert not (tmp_path / "figures" / "1.0.0").exists()


def test_another_command_does_not_go_on_with_what_is_there(tmp_path):
    prepare.run(options(tmp_path, shards=2))
    with pytest.raises(
        ValueError, match=r"1\.0\.0 was made by another command: --shards was 2, is 3\. Remove it, or change --name"
    ):
        prepare.run(options(tmp_path, shards=3))
    (tmp_path / "figures" / "1.0.0" / "prepare.json").unlink()
    with pytest.raises(ValueError, match=r"1\.0\.0 holds a data set that something else made; take another --name"):
        prepare.run(options(tmp_path, shards=2))


def test_a_message_names_the_flags_of_prepare_and_not_those_of_train(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=noise(4, 8, 8, 1).astype(np.float32))
    for side in (8, 9):
        (tmp_path / "folder").mkdir(exist_ok=True)
        Image.fromarray(noise(side, side, 3)).save(tmp_path / "folder" / f"{side}.png")
    for source, hint in (
        (f"npz:{tmp_path / 'a.npz'}", "as --range 0 255"),
        (f"folder:{tmp_path / 'folder'}", "; --resolution 8"),
    ):
        assert main(["prepare", source, "--name", "mine", "--out", str(tmp_path / "sets")]) == 2
        assert hint in capsys.readouterr().err
    (tmp_path / "folder" / "9.png").write_bytes(b"no picture")
    assert main(["prepare", source, "--name", "mine", "--out", str(tmp_path / "sets")]) == 2
    assert "leave them out with --skip-bad:" in capsys.readouterr().err


@pytest.mark.parametrize("record", ["", "[]", "{", "[" * 100_000, '{"request": {}}', '{"request": 3, "shards": {}}'])
def test_a_damaged_record_is_no_record(tmp_path, record):
    prepare.run(options(tmp_path))
    whole = tmp_path / "figures" / "1.0.0"
    for folder in (whole, whole.with_name("1.0.0.part")):
        if folder != whole:
            whole.rename(folder)
        (folder / "prepare.json").write_text(record)
        with pytest.raises(ValueError, match=rf"{folder} holds .*it is its prepare\.json that is missing or damaged"):
            prepare.run(options(tmp_path))


def test_what_cannot_be_written_is_said_and_not_shown_as_a_fault(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["prepare", "digits", "--name", "figures", "--out", str(tmp_path / "file")]) == 6
    assert capsys.readouterr().err.startswith("prepare: [Errno 20] Not a directory: '")


def test_a_full_disk_ends_it_in_good_order_and_it_goes_on_with_more_room(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")
    try:
        arguments = ["prepare", "digits", "--name", "figures", "--shards", "5", "--out", str(disk)]
        assert main(arguments) == 6
        message = capsys.readouterr().err
        assert "unfinished cannot be written: " in message and "No space left on device" in message
        (part,) = disk.glob("figures/*.part")
        assert not (part / "unfinished").exists() and 0 < shards_in(part) < 5
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        assert main(arguments) == 0
        assert len(sources.open_readers(f"tfds:figures@{disk}")[0]) == 1500
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_other_images_under_the_same_name_are_noticed(tmp_path):
    part = tmp_path / "noisy" / "1.0.0.part"
    np.savez(tmp_path / "a.npz", images=noise(60, 6, 6, 3))
    wanted = options(tmp_path, f"npz:{tmp_path / 'a.npz'}", "noisy")
    part.mkdir(parents=True)
    splits = dict(zip(("train", "test"), prepare.open_readers(wanted), strict=True))
    (part / "prepare.json").write_text(json.dumps(prepare.resume_record(part, wanted, splits)))
    np.savez(tmp_path / "a.npz", images=255 - noise(60, 6, 6, 3))
    with pytest.raises(ValueError, match=r"1\.0\.0\.part was started with other images than npz:.*a\.npz has now; rem"):
        prepare.run(wanted)


def test_two_processes_do_not_work_on_one_data_set(tmp_path):
    (tmp_path / "figures").mkdir()
    refusal = r"figures is in use by process \d+ on .*; only one process can write to it"
    with FolderLock(tmp_path / "figures"), pytest.raises(ValueError, match=refusal):
        prepare.run(options(tmp_path))
    assert prepare.run(options(tmp_path)) == 0


def test_names_that_tfds_cannot_keep_are_refused(tmp_path):
    for name, count in ((" cat", 6), ("dog", 6)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(4, 4)).save(tmp_path / "pets" / name / f"{i}.png")
    with pytest.raises(ValueError, match="TFDS keeps the names of labels one to a line; rename ' cat'"):
        prepare.run(options(tmp_path, f"folder:{tmp_path / 'pets'}", "pets"))


def test_the_command_line_says_what_it_wants(capsys):
    with pytest.raises(SystemExit):
        main(["prepare"])
    assert "SOURCE" in capsys.readouterr().err
    assert main(["prepare", "nothing", "--name", "a", "--out", "/nonexistent"]) == 2
