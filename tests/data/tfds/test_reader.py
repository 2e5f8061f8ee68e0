"""Data sets that TensorFlow Datasets wrote, and whether what is read is what it was given."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.data.images import ValueRange
from ddpm_jax.data.tfds import address, reader
from ddpm_jax.programs.cli import call as main

# A folder that tensorflow-datasets 4.9.10 wrote with tensorflow 2.21.0 and no option set: tfrecord files.  Image i is
# the array [[10 i, 10 i + 1], [10 i + 2, 10 i + 3]], its label i % 2; images 0 to 4 are in train, 5 and 6 in test.
TINY = (
    "P)h>@6aWAK2mrZObzPjep9|Xn007$o000pH003lRbYXL4bYE$1W^XQPb8l|7kU@*WFc5|B{)&*ZTWUdA_Exb)q3WVN>>?6^9c`dVOENA<$ba89"
    "78UW}#mgk~9(nI0c0dR{hzinLOOEu5P&{bZ*Ses?&XaX<s$j__bRJ`p3&q&QQ@x5poiB=MDuJfew(UlU^|NniIF>ocrsC*d*=d}|n<RH1cJrOh"
    "a~Ifjo+asOy@<Uyi`P^3!&WK#bw1ulT}yRKawnhU<c!dD({U8u3{!GlWT1{%-oU&wru}{APd9u&GZ=i19EG2+AV&|#?cDi~{{wAAt-7dD5C$O~"
    "xPMSf0|XQR000O8xmI;u1|07U*#H0lC<6ch4FCWDW@TY?b#i5ME^2dcZnaZE3c@fDyyq1qX9?&@yjBE3{D4S^ZK{DZDNTx$(!ZOots2^>2<Eie"
    "88WlG*#<@K;EXd{mE5dFV(}_!AnPGs77&rMGasctKmez<E;<-jLfIvrO|#5}72!wj4~d*BBed%59fCaIE&@8=6XrOGA19G^lx@cnxTx(#t5`B)"
    "_AH0KSXY%UGpVmMWtJIk4M}v#$uJE99j5)2Y@y%ijS`mZ#O3s~l1_RT#DSx#92~+&aIN}ZW#EQ_-A8@#)1hA^@}u6wZ^A=BQ?~?U^STkJy#Y{5"
    "0|XQR000O8xmI;ukDlH33jhEB2><{95C8xGY++($Y%XkJVr6V|E_8TwOD#*y<H}D-;Q|0qO9KQH000080J&CmT`Z^-XoCO%0Pp|+03iSX0CZ_?"
    "c`bBhb963rW^!d?Z*pWUFfcGMFfDIpEif=JFfq$ufPjB<s;+RQafNWPX67cQrwVy<d2+dT2Kc%2a!GLk<#|0lT!Mf!69{vFbcEjx`T?Z)JY5_^"
    "D&{0_NlZyhVqswPWpJD9y2~7-!qe5yWt~$(6Bi#BYffTPYK{=A6f+kiLj|{FM+UX*HA#ZlE6reYz35*z9(x&Wrd)Uk08mQ<1QY-O00;oNR&`y~"
    "6@4|t000130ssIa0001VX>NHfbaG*7ZZ33Ya%E$0a%3$qFfcGMEpKKmFfcGMG0R|pfPZtUu5hJsg>bQE<|d}63VCyRa=CW~___0PNpS(?c|AQ`"
    "f`Bv=2y=jRgx?MN0i^gmT^vIy<|JQ9NJ&g$VPJU4U?lr3;Vejnr>mdKI;VstE<P^SoW!Km93fUIW-dmCT^+B5GN@&5LPAOk$X+1^Hl;*v9enma"
    "nknW$HG8KdL;Sm)L1Xtxi-&mZWn^`G{+Vj_K1qVu8_Xc0y_WSlK6@|D-JnA?dqol<_O>#}DRfk-;0x#XFE20w08mQ-0u%!j000080J&CmU7Wa|"
    "3)=ty0NVio01*HH00000000000HlEc0001FVRT`0WprO@Zf0*TYIARHP)h*<6ay3h000O8xmI;u1|07U*#H0lC<6ch4FCWD0000000000q=5<n"
    "003rXVRUtJWpgfSb8l`?O928D0~7!N00;oNR&`yEp568f000090000G00000000000001_fer!y0Bm7mWo#~NVPa)$b1rmvbWlqH0u%!j00008"
    "0J&CmT`Z^-XoCO%0Pp|+03iSX00000000000HlFO0ssJXX>NHfbY*jNE_7ycWn*u0WGyf-FfcGJZ)PnpFfcGNP)h*<6ay3h000O8xmI;u)fIg;"
    "!~g&QSONe5A^-pY0000000000q=5+o004ApZh0+qa$#w1E_7ycWn*u0WGyf-FfcGJZ)PnpFfcGNP)h{{000001poyAR{;P34FmuH000"
)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, format, **options)
    return file.getvalue()


def noise(*shape, dtype=np.uint8):
    return np.random.RandomState(0).randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def prepared(home, features, config=None, version="1.0.0", **splits):
    """A data set "made" in array_record files, by TFDS's own builder: each split is a list of examples."""

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "made"
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {name: enumerate(examples) for name, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    def files(value):
        return io.BytesIO(value) if isinstance(value, bytes) else value

    splits = {
        name: [{key: files(value) for key, value in example.items()} for example in rows]
        for name, rows in splits.items()
    }
    Made(data_dir=home, file_format="array_record", **({"config": config} if config else {})).download_and_prepare()
    return f"tfds:made@{home}"


def colour(count, height=4, width=6):
    return [{"image": encoded(image)} for image in noise(count, height, width, 3)]


def rgb(shape=(4, 6, 3)):
    return {"image": tfds.features.Image(shape=shape)}


def unzipped(home):
    with zipfile.ZipFile(io.BytesIO(base64.b85decode(TINY))) as archive:
        archive.extractall(home / "tiny" / "1.0.0")
    return f"tfds:tiny@{home}"


# What is read


def test_images_labels_and_captions_are_those_that_tfds_was_given(tmp_path):
    images, words = noise(12, 4, 6, 3), [f"número {i}" for i in range(12)]
    rows = [{"image": encoded(images[i]), "label": i % 3, "text": words[i], "id": i} for i in range(12)]
    features = {
        **rgb(), "id": tfds.features.Scalar(np.int64), "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["cat", "dog", "cow"]),
    }  # fmt: skip
    train, test = reader.open_readers(prepared(tmp_path, features, train=rows[:8], test=rows[8:]))
    for part, start in ((train, 0), (test, 8)):
        count = len(part)
        assert (part.shape, part.dtype, part.levels) == ((4, 6, 3), np.uint8, 256)
        np.testing.assert_array_equal([part[i] for i in range(count)], images[start : start + count])
        assert part.labels is not None
        np.testing.assert_array_equal(part.labels, [i % 3 for i in range(start, start + count)])
        assert part.captions == tuple(words[start : start + count])
        assert part.label_names == ("cat", "dog", "cow")


def test_a_part_is_held_out_by_the_rule_of_npz_files_where_there_is_no_test_split(tmp_path):
    rows = [{"image": encoded(np.full((2, 2, 3), i, np.uint8))} for i in range(50)]
    train, test = reader.open_readers(prepared(tmp_path, rgb((2, 2, 3)), train=rows))
    # The last five of numpy.random.RandomState(0).permutation(50), as in the test of npz files.
    assert [int(test[i][0, 0, 0]) for i in range(len(test))] == [0, 3, 44, 46, 47]
    assert len(train) == 45 and int(train[0][0, 0, 0]) == 1
    assert (train.labels, train.captions, train.label_names) == (None, None, ())


def test_a_source_names_its_splits_and_their_slices(tmp_path):
    rows = [{"image": encoded(np.full((2, 2, 3), i, np.uint8))} for i in range(10)]
    source = prepared(tmp_path, rgb((2, 2, 3)), whole=rows[:6], validation=rows[6:])
    for splits, expected in (
        ("whole,validation", (list(range(6)), [6, 7, 8, 9])),
        ("whole[:50%]+validation[1:3],whole[4:]", ([0, 1, 2, 7, 8], [4, 5])),
    ):
        parts = reader.open_readers(source.replace("made", f"made#{splits}"))
        assert tuple([int(part[i][0, 0, 0]) for i in range(len(part))] for part in parts) == expected


def test_validation_is_held_out_where_there_is_no_test(tmp_path):
    _, test = reader.open_readers(prepared(tmp_path, rgb(), train=colour(3), validation=colour(2)))
    assert len(test) == 2


def test_grey_and_palette_files_of_a_colour_data_set_are_seen_in_colour(tmp_path):
    grey = noise(4, 6)
    palette = Image.fromarray(grey).convert("P")
    source = prepared(tmp_path, rgb(), train=[{"image": encoded(grey)}, {"image": encoded(palette)}], test=colour(1))
    train, _ = reader.open_readers(source)
    for i in range(2):
        np.testing.assert_array_equal(train[i], np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels_are_kept(tmp_path, channels):
    image = noise(4, 6, channels)
    file = encoded(image[..., 0] if channels == 1 else image)
    train, _ = reader.open_readers(prepared(tmp_path, rgb((4, 6, channels)), train=[{"image": file}] * 2))
    np.testing.assert_array_equal(train[0], image)


def test_sixteen_bits_are_kept(tmp_path):
    deep = noise(4, 6, dtype=np.uint16)
    features = {"image": tfds.features.Image(shape=(4, 6, 1), dtype=np.uint16, encoding_format="png")}
    train, _ = reader.open_readers(prepared(tmp_path, features, train=[{"image": encoded(deep)}] * 2))
    assert (train.dtype, train.levels) == (np.uint16, 65536)
    np.testing.assert_array_equal(train[0][..., 0], deep)


@pytest.mark.parametrize(("dtype", "levels"), [(np.uint16, 65536), (np.float32, ValueRange(0, 255))])
def test_arrays_called_image_are_images(tmp_path, dtype, levels):
    value_range = levels if isinstance(levels, ValueRange) else None
    images = noise(3, 4, 6, 5).astype(dtype)
    features = {"image": tfds.features.Tensor(shape=(4, 6, 5), dtype=dtype, encoding="zlib")}
    train, _ = reader.open_readers(
        prepared(tmp_path, features, train=[{"image": image} for image in images], test=[{"image": images[0]}]),
        value_range=value_range,
    )
    assert (train.dtype, train.levels) == (dtype, levels)
    np.testing.assert_array_equal([train[i] for i in range(3)], images)


def test_where_sizes_are_not_declared_they_are_looked_at(tmp_path):
    train, _ = reader.open_readers(prepared(tmp_path, rgb((None, None, 3)), train=colour(5)))
    assert train.shape == (4, 6, 3)


def test_images_are_brought_to_a_size(tmp_path):
    # The middle of a ramp that grows by 8 from left to right; reduced to a half, the mean of each pair of columns.
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], 16, axis=0).repeat(3, axis=2)
    source = prepared(
        tmp_path, rgb((None, None, 3)), train=[{"image": encoded(ramp)}, {"image": encoded(ramp[:, 8:24])}]
    )
    train, _ = reader.open_readers(source, size=(8, 8))
    assert train.shape == (8, 8, 3)
    expected = ramp[:8, 8:24].reshape(8, 8, 2, 3).mean(axis=2)
    np.testing.assert_allclose(train[0][:, 1:-1], expected[:, 1:-1], atol=1)


@pytest.mark.parametrize("channels", [2, 4])
def test_no_channel_of_an_array_is_taken_for_alpha_when_it_is_scaled(tmp_path, channels):
    features = {"image": tfds.features.Tensor(shape=(8, 8, channels), dtype=np.float32, encoding="zlib")}
    colour = np.linspace(-1, 0.25, channels, dtype=np.float32)
    source = prepared(tmp_path, features, train=[{"image": np.tile(colour, (8, 8, 1))}] * 2)
    train, _ = reader.open_readers(source, value_range=ValueRange(-1, 1), size=(4, 4))
    np.testing.assert_allclose(train[0], np.tile(colour, (4, 4, 1)), atol=1e-6)


def test_tfrecord_files_are_read_without_tensorflow(tmp_path):
    source = unzipped(tmp_path)
    train, test = reader.open_readers(source)
    for part, ids in ((train, {0, 1, 2, 3, 4}), (test, {5, 6})):
        assert part.labels is not None and part.label_names == ("even", "odd")
        found = {int(part[i][0, 0, 0]) // 10 for i in range(len(part))}
        assert found == ids and len(part) == len(ids)
        for i in range(len(part)):
            tens = 10 * (int(part[i][0, 0, 0]) // 10)
            np.testing.assert_array_equal(part[i][..., 0], np.array([[0, 1], [2, 3]]) + tens)
            assert part.labels[i] == tens // 10 % 2
    # a slice is the same images as a part of the whole
    some, _ = reader.open_readers(source.replace("tiny", "tiny#train[1:4]"), held_out=0.4)
    assert {int(some[i][0, 0, 0]) for i in range(2)} <= {int(train[i][0, 0, 0]) for i in (1, 2, 3)}


def test_reading_imports_no_tensorflow(tmp_path):
    lines = (
        "import sys; from ddpm_jax.data.tfds import reader; a, b = reader.open_readers(sys.argv[1]); a[0], a.labels; "
    )
    lines += "print([m for m in ('tensorflow', 'cv2') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", lines, unzipped(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Where it is


def test_the_environment_says_where_data_sets_lie(tmp_path, monkeypatch):
    unzipped(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    train, _ = reader.open_readers("tfds:tiny")
    assert len(train) == 5
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert address.parse_address("tfds:tiny").data_dir == Path.home() / "tensorflow_datasets"


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path):
    for version, count in (("1.9.0", 3), ("1.10.0", 4)):
        prepared(tmp_path, rgb(), version=version, train=colour(count), test=colour(1))
    assert len(reader.open_readers(f"tfds:made@{tmp_path}")[0]) == 4
    assert len(reader.open_readers(f"tfds:made:1.9.0@{tmp_path}")[0]) == 3
    with pytest.raises(FileNotFoundError, match=r"no version 2\.0\.0; there are 1\.9\.0, 1\.10\.0"):
        reader.open_readers(f"tfds:made:2.0.0@{tmp_path}")


def test_a_config_is_named(tmp_path):
    prepared(tmp_path, rgb(), config="small", train=colour(3), test=colour(1))
    assert len(reader.open_readers(f"tfds:made/small@{tmp_path}")[0]) == 3
    with pytest.raises(ValueError, match=r"made has the configs small: name one, as tfds:made/small"):
        reader.open_readers(f"tfds:made@{tmp_path}")


def test_what_is_being_written_is_not_a_data_set(tmp_path):
    unzipped(tmp_path)
    (tmp_path / "tiny" / "1.0.0").rename(tmp_path / "tiny" / "incomplete.ABC123_1.0.0")
    with pytest.raises(FileNotFoundError, match="no data set tiny"):
        reader.open_readers(f"tfds:tiny@{tmp_path}")


# What is refused


def test_a_data_set_of_the_catalogue_that_is_not_prepared_is_answered_by_the_command(tmp_path, monkeypatch):
    call = f"tfds.builder('lsun/church', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()"
    command = f'python -c "import tensorflow_datasets as tfds; {call}"'
    for there, install in ((None, 'pip install "ddpm-jax[tfds]" && '), (object(), "")):
        monkeypatch.setattr(address.importlib.util, "find_spec", lambda name, there=there: there)
        with pytest.raises(FileNotFoundError) as error:
            reader.open_readers(f"tfds:lsun/church@{tmp_path}")
        assert str(error.value).endswith(
            f"lsun/church is not prepared in {tmp_path}. This prepares it, once: {install}{command}"
        )
    compile(command.split('"')[1], "command", "exec")


def test_an_unknown_data_set_is_answered_by_what_is_there(tmp_path):
    unzipped(tmp_path)
    command = rf"ddpm-jax prepare folder:PATH --name mine --out {tmp_path}"
    with pytest.raises(FileNotFoundError, match=rf"no data set mine; there are tiny\. .*: {command}"):
        reader.open_readers(f"tfds:mine@{tmp_path}")


def test_formats_that_are_not_read_are_answered_by_the_command(tmp_path):
    source = unzipped(tmp_path)
    info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
    text = rf"as riegeli, which is not supported.* data_dir='{tmp_path}-array_record', file_format='array_record'"
    with pytest.raises(ValueError, match=text):
        reader.open_readers(source)


def test_images_of_different_sizes_are_answered_by_a_command_that_mends_it(tmp_path):
    source = prepared(tmp_path, rgb((None, None, 3)), train=colour(3) + colour(2, 5, 7), test=colour(1))
    train, _ = reader.open_readers(source)
    with pytest.raises(ValueError, match=r"different sizes: 4x6 \(3\), 5x7 \(2\) \(height x width\)\. This") as error:
        train.shape  # noqa: B018
    command = str(error.value).partition("ddpm-jax ")[2].split()
    assert main(command) == 0
    train, _ = reader.open_readers(f"tfds:made_64@{tmp_path}")
    assert (train.shape, len(train), train[4].shape) == ((64, 64, 3), 5, (64, 64, 3))


def test_splits_without_labels_are_refused_when_labels_are_asked_for(tmp_path):
    rows = [{**row, "label": label} for row, label in zip(colour(4), (0, 1, -1, -1), strict=True)]
    features = {**rgb(), "label": tfds.features.ClassLabel(num_classes=2)}
    train, test = reader.open_readers(prepared(tmp_path, features, train=rows[:2], test=rows[2:]))
    assert train.labels is not None and train.label_names == ()
    assert test[0].shape == (4, 6, 3)
    with pytest.raises(ValueError, match=r"2 images of the split 'test' have no label: name the splits"):
        test.labels  # noqa: B018


def test_damage_is_told_with_the_image(tmp_path):
    source = prepared(tmp_path, rgb(), train=[{"image": encoded(noise(4, 6, 3))[:-30]}, *colour(1)], test=colour(1))
    train, _ = reader.open_readers(source)
    with pytest.raises(ValueError, match=rf"{re.escape(source)}: image 0 of the split 'train' cannot be read: "):
        train[0]
    (file,) = tmp_path.glob("made/1.0.0/*train.array_record*")
    data = bytearray(file.read_bytes())
    offset = bytes(data).rindex(b"IHDR")
    data[offset] ^= 255
    file.write_bytes(data)
    train, _ = reader.open_readers(source)
    with pytest.raises(ValueError, match="image 1 of the split 'train' cannot be read: Corrupted"):
        train[1]


def test_a_tfrecord_file_that_is_cut_off_is_refused(tmp_path):
    source = unzipped(tmp_path)
    (file,) = tmp_path.glob("tiny/1.0.0/*train.tfrecord*")
    whole = file.read_bytes()
    for part in (whole[:-1], whole[:-40], whole[: len(whole) // 5 * 4], b""):
        file.write_bytes(part)
        with pytest.raises(ValueError, match=rf"{file.name}: expected 5 whole records in {len(part)} bytes, found "):
            reader.open_readers(source)


@pytest.mark.parametrize(
    ("features", "row", "text"),
    [
        ({"x": tfds.features.Scalar(np.int64)}, {"x": 1}, "expected one feature of images, or one .*; it has x: Sc"),
        ({key: rgb()["image"] for key in "ab"}, {key: colour(1)[0]["image"] for key in "ab"}, "a: Image, b: Image"),
        (rgb(), {"image": encoded(noise(4, 6, 4))}, "image 0 .* the mode RGBA; expected uint8 of 3 channels"),
        (rgb(), {"image": encoded(noise(5, 6, 3))}, r"image 0 .* has the shape \(5, 6, 3\), others have \(4, 6, 3\)"),
    ],
)
def test_data_sets_are_refused(tmp_path, features, row, text):
    with pytest.raises(ValueError, match=text):
        reader.open_readers(prepared(tmp_path, features, train=[row], test=[row]))[0][0]


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        ("tfds:", {}, r"'tfds:': expected tfds:NAME\[/CONFIG\]\[:VERSION\]\[#TRAIN\[,TEST\]\]\[@FOLDER\]"),
        ("tfds:tiny#a,b,c@HOME", {}, "expected tfds:NAME"),
        ("tfds:tiny#extra@HOME", {}, "no split 'extra'; there are test, train: name those to train and to test on"),
        ("tfds:tiny#train[:1%],test@HOME", {}, r"the split 'train\[:1%\]' has no images: name a larger part"),
        ("tfds:tiny#train,test[:0]@HOME", {}, r"the split 'test\[:0\]' has no images: name a larger part"),
        ("tfds:tiny@HOME", {"levels": 257}, "images of type uint8; expected 2 to 256 levels, got levels=257"),
    ],
)
def test_sources_and_options_are_refused(tmp_path, source, options, text):
    unzipped(tmp_path)
    with pytest.raises(ValueError, match=text):
        reader.open_readers(source.replace("HOME", str(tmp_path)), **options)


def test_values_above_the_levels_are_refused(tmp_path):
    train, _ = reader.open_readers(unzipped(tmp_path), levels=43)
    with pytest.raises(ValueError, match=r"image \d of the split 'train': the value 43 is above levels - 1 = 42"):
        [train[i] for i in range(5)]
    train, _ = reader.open_readers(unzipped(tmp_path), levels=44)
    assert train.levels == 44 and max(int(train[i].max()) for i in range(5)) == 43


def test_floats_have_a_range_and_no_levels(tmp_path):
    features = {"image": tfds.features.Tensor(shape=(4, 6, 1), dtype=np.float32, encoding="zlib")}
    ramp = np.linspace(-1, 2, 24, dtype=np.float32).reshape(4, 6, 1)
    source = prepared(tmp_path, features, train=[{"image": ramp}] * 2)
    with pytest.raises(ValueError, match="floating-point images have no levels, got levels=256"):
        reader.open_readers(source, levels=256)
    with pytest.raises(ValueError, match=r"floating-point images; say which values become -1 and 1.* --data.range 0 1"):
        reader.open_readers(source)
    with pytest.raises(ValueError, match=r"image \d of the split 'train': the value -1 is outside of the range 0 2"):
        _ = reader.open_readers(source, value_range=ValueRange(0, 2))[0][0]
    small = reader.open_readers(source, value_range=ValueRange(-1, 2), size=(2, 3))[0][0]
    # an antialiased filter keeps the mean of a ramp, and its result the data's range
    assert small.mean() == pytest.approx(ramp.mean(), abs=0.02) and small.min() >= -1 and small.max() <= 2


def test_integers_have_levels_and_no_range(tmp_path):
    with pytest.raises(ValueError, match="images of type uint8 have levels; a range is for floating-point images"):
        reader.open_readers(unzipped(tmp_path), value_range=ValueRange(0, 1))


@pytest.mark.parametrize(
    ("file", "form"),
    [
        ("features.json", {"pythonClassName": "CLASS", "tensor": {}}),
        ("features.json", {"python_class_name": "CLASS", "tensor": {}}),
        ("features.json", {"pythonClassName": "SEQUENCE", "sequence": {"feature": {"pythonClassName": "CLASS"}}}),
        ("features.json", {"type": "CLASS", "content": {}}),
        ("features.json", {"type": "SEQUENCE", "content": {"feature": {"type": "CLASS", "content": {}}, "length": 1}}),
        ("features.json", {"pythonClassName": "SEQUENCE", "jsonFeature": {"json": "WITHIN"}}),
        ("dataset_info.json", {"pythonClassName": "CLASS", "tensor": {}}),
    ],
)
def test_a_data_set_cannot_name_code_to_execute(tmp_path, monkeypatch, file, form):
    source, ran = unzipped(tmp_path), tmp_path / "ran"
    (tmp_path / "hostile.py").write_text(f"open({str(ran)!r}, 'w').close()")  # as in the folder where one works
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hostile", raising=False)
    sequence = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    within = ' {"feature": {"type": "CLASS", "content": {}}, "length": 1}'
    text = json.dumps(form).replace('"WITHIN"', json.dumps(within))
    form = json.loads(text.replace("SEQUENCE", sequence).replace("CLASS", "hostile.Feature"))
    path = tmp_path / "tiny" / "1.0.0" / file
    message = json.loads(path.read_text())
    if file == "features.json" and "type" in form:
        message = {"type": message["pythonClassName"], "content": {"image": form}}
    elif file == "features.json":
        message["featuresDict"]["features"]["image"] = form
    else:
        own = json.loads((path.parent / "features.json").read_text())["pythonClassName"]
        message["features"] = {"pythonClassName": own, "featuresDict": {"features": {"image": form}}}
    path.write_text(json.dumps(message))
    with pytest.raises(ValueError) as error:
        reader.open_readers(source)
    assert not ran.exists()
    assert re.search(rf"1\.0\.0: .*{file} names the class 'hostile\.Feature'.* only TFDS's own", str(error.value))


def test_a_pipe_among_its_files_is_not_waited_for(tmp_path):
    source = unzipped(tmp_path)
    os.mkfifo(tmp_path / "tiny" / "1.0.0" / "label.labels.txt~")
    with pytest.raises(
        ValueError, match=r"1\.0\.0: not a data set .*: pipes or devices among its files: label\.labels"
    ):
        reader.open_readers(source)


def test_a_folder_that_tfds_cannot_read_is_refused(tmp_path):
    source = unzipped(tmp_path)
    (tmp_path / "tiny" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"1\.0\.0: not a data set as TFDS prepares them: "):
        reader.open_readers(source)
