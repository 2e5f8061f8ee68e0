"""Files of tensors, sound and hostile; and folders that appear whole or not at all."""

import io
import pathlib
import pickle
import zipfile

import goldens_loader
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tensorflow_files import needs_tensorflow, write_tensorflow_checkpoint

from ddpm_jax.convert import tensor_files, torch_files

TENSORS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.float16([1, 2, 3])}


class Trap:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def same(found, wanted=TENSORS):
    assert set(found) == set(wanted)
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype
        assert found[name].tobytes() == wanted[name].tobytes()


def test_safetensors_and_npz_give_their_tensors(tmp_path):
    tensors = TENSORS | {"narrow": np.arange(5).astype(ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / "w.safetensors")
    same(tensor_files.read_tensors(tmp_path / "w.safetensors"), tensors)
    np.savez(tmp_path / "w.npz", **{"model/a/W": TENSORS["a.weight"]})
    same(tensor_files.read_tensors(tmp_path / "w.npz"), {"model/a/W": TENSORS["a.weight"]})


def test_what_is_written_is_readable_to_all_and_has_the_same_bytes_for_the_same_content(tmp_path):
    tensor_files.write_safetensors(tmp_path / "1.safetensors", TENSORS, {"format": "pt"})
    tensor_files.write_safetensors(tmp_path / "2.safetensors", dict(reversed(TENSORS.items())), {"format": "pt"})
    same(tensor_files.read_tensors(tmp_path / "1.safetensors"))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "1.safetensors").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("end", [0, 4, 8, 40, 100, -7, -1])
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, kind, end):
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        np.savez(path, **TENSORS)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=rf"w\.{kind} cannot be read, it is damaged or of another kind"):
        tensor_files.read_tensors(path)


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match="cannot be read"):
        tensor_files.read_tensors(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_an_archive_with_an_array_of_objects_is_refused_and_not_run(tmp_path):
    held = np.array([Trap(tmp_path / "sprung")], object)
    np.savez(tmp_path / "w.npz", weights=held, allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot be read.*pickle"):
        tensor_files.read_tensors(tmp_path / "w.npz")
    assert not (tmp_path / "sprung").exists()


def test_an_archive_that_holds_something_else_than_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", b"not an array")
    with pytest.raises(ValueError, match="cannot be read"):
        tensor_files.read_tensors(tmp_path / "w.npz")
    with io.BytesIO() as one:
        np.save(one, TENSORS["a.bias"])
        (tmp_path / "one.npz").write_bytes(one.getvalue())
    with pytest.raises(ValueError, match="one array without a name"):
        tensor_files.read_tensors(tmp_path / "one.npz")


@pytest.mark.parametrize("format", ["zip", "old"])
def test_pytorchs_tensors_are_read_to_the_bit(format):
    """Views of one storage, of any order, and one of no numbers; goldens/make_torch.py wrote them."""
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    found = tensor_files.read_tensors(goldens_loader.FOLDER / f"torch_{format}.pt")
    assert list(found)[:3] == ["table", "part", "turned"]
    same(
        found,
        {
            "table": table,
            "part": table[1:3, 2:5],
            "turned": table.T,
            "scalar": np.float64(3.5),
            "empty": np.zeros((0, 3), np.float32),
            "half": np.arange(3).astype(np.float16),
            "narrow": np.arange(5).astype(ml_dtypes.bfloat16),
            "steps": np.int64(7),
            "parameter": np.array([True, False]),
        },
    )
    assert all(found[name].flags.c_contiguous for name in found)


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)


def old_file(held) -> bytes:
    """A file of PyTorch before 1.6, of no storages."""
    parts = [torch_files.MAGIC, torch_files.VERSION, {"little_endian": True}, held, []]
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


@pytest.mark.parametrize("kind", ["bin", "pt", "pth", "ckpt"])
def test_pytorchs_pickles_are_not_executed(tmp_path, kind):
    held = {"a.weight": Trap(tmp_path / "sprung")}
    (tmp_path / f"bare.{kind}").write_bytes(pickle.dumps(held))
    (tmp_path / f"old.{kind}").write_bytes(old_file(held))
    write_zip(tmp_path / f"zipped.{kind}", {"data.pkl": pickle.dumps(held, protocol=2)})
    for name in (f"bare.{kind}", f"old.{kind}", f"zipped.{kind}"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read.*refers to .*no part of a tensor"):
            tensor_files.read_tensors(tmp_path / name)
        assert not (tmp_path / "sprung").exists()


def test_other_things_than_named_tensors_are_refused_by_what_they_are(tmp_path):
    write_zip(tmp_path / "w.pt", {"data.pkl": pickle.dumps({"state_dict": {}, "epoch": 3}, protocol=2)})
    with pytest.raises(ValueError, match="expected named tensors, and it holds a dict of state_dict, epoch"):
        tensor_files.read_tensors(tmp_path / "w.pt")
    (tmp_path / "l.ckpt").write_bytes(old_file([1]))
    with pytest.raises(ValueError, match="and it holds a list"):
        tensor_files.read_tensors(tmp_path / "l.ckpt")


def test_pytorchs_files_that_were_cut_short_are_refused(tmp_path):
    for format in ("zip", "old"):
        whole = (goldens_loader.FOLDER / f"torch_{format}.pt").read_bytes()
        for length in (0, 20, len(whole) // 2, len(whole) - 1):
            (tmp_path / "cut.pt").write_bytes(whole[:length])
            with pytest.raises(ValueError, match="cannot be read"):
                tensor_files.read_tensors(tmp_path / "cut.pt")
    # a tensor that goes beyond its storage
    with zipfile.ZipFile(goldens_loader.FOLDER / "torch_zip.pt") as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    write_zip(tmp_path / "short.pt", members | {"data/0": members["data/0"][:-1]})
    with pytest.raises(ValueError, match=r"short\.pt cannot be read.*buffer"):
        tensor_files.read_tensors(tmp_path / "short.pt")
    write_zip(tmp_path / "big.pt", members | {"byteorder": b"big"})
    with pytest.raises(ValueError, match=r"big\.pt cannot be read.*big-endian"):
        tensor_files.read_tensors(tmp_path / "big.pt")


@needs_tensorflow
def test_tensorflows_variables_are_read_by_the_name_of_any_of_their_files(tmp_path):
    write_tensorflow_checkpoint(
        tmp_path / "model.ckpt-790000", {"model/a/W": TENSORS["a.weight"], "global_step": np.int64(790_000)}
    )
    present = sorted(tmp_path.glob("model.ckpt-790000.*"))
    assert tensor_files.checkpoint_files(tmp_path / "model.ckpt-790000") == [
        tmp_path / "model.ckpt-790000.index",
        present[0],
    ]
    for name in ("model.ckpt-790000", "model.ckpt-790000.index", "model.ckpt-790000.meta", present[0].name):
        found = tensor_files.read_tensors(tmp_path / name)
        assert set(found) == {"model/a/W", "global_step"} and found["global_step"] == 790_000
        assert found["model/a/W"].tobytes() == TENSORS["a.weight"].tobytes()
    whole = present[0].read_bytes()
    present[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.ckpt-790000 cannot be read, it is damaged"):
        tensor_files.read_tensors(tmp_path / "model.ckpt-790000")
    present[0].unlink()
    with pytest.raises(ValueError, match=r"model\.ckpt-790000 cannot be read, it is damaged"):
        tensor_files.read_tensors(tmp_path / "model.ckpt-790000")


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    names = [f"model[1].ckpt-5{end}" for end in (".index", ".data-00000-of-00001")]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "model1.ckpt-5.data-00000-of-00001").touch()  # which the pattern would find
    assert [path.name for path in tensor_files.checkpoint_files(tmp_path / "model[1].ckpt-5")] == names


def test_a_tensorflow_checkpoint_takes_tensorflow_and_the_refusal_says_what_else_does(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    (tmp_path / "model.ckpt-790000.index").touch()
    for name in ("model.ckpt-790000", "model.ckpt-790000.index", "model.ckpt-790000.data-00000-of-00001"):
        with pytest.raises(ModuleNotFoundError) as raised:
            tensor_files.read_tensors(tmp_path / name)
        message = str(raised.value)
        assert "takes TensorFlow to read: pip install 'ddpm-jax[tfds]'" in message and "numpy.savez" in message
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model\.ckpt-5\.index"):
        tensor_files.read_tensors(tmp_path / "model.ckpt-5")


def test_other_files_and_none_are_refused(tmp_path):
    (tmp_path / "w.h5").touch()
    with pytest.raises(ValueError, match=r"tensors are read from \.safetensors, \.npz, .*not from \.h5"):
        tensor_files.read_tensors(tmp_path / "w.h5")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.npz"):
        tensor_files.read_tensors(tmp_path / "gone.npz")


def test_json_that_is_none_is_refused(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        tensor_files.read_json(path)
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match="is not JSON, or damaged"):
        tensor_files.read_json(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="must hold an object with fields"):
        tensor_files.read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON, or damaged"):
        tensor_files.read_json(path)


def test_a_fingerprint_is_what_sha256sum_says(tmp_path):
    (tmp_path / "w").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert tensor_files.file_digest(tmp_path / "w") == {"bytes": 3, "sha256": abc}
