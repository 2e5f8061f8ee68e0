"""Reading, resizing and writing of single image files.

Colours are never converted and bits never dropped.  Conversions that Pillow would make on its own when it reads or
writes a file (16-bit colours to 8 bits, an unnamed fourth channel dropped) are refused with advice.
"""

import io
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from ddpm_jax.data.images import ValueRange
from ddpm_jax.process import first_line

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile
    from PIL import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy")
READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow's names
ARRAY_TYPES = ("u1", "u2", "f2", "f4", "f8")  # numpy's, of arrays that are images
MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1}  # modes and their channels
SIXTEEN_BIT_HINT = "which would be cut to 8 bits: save it as a .npy file, uint16 [H, W, C]"

WRITE_FORMATS = {
    "png": ("png", {"L", "LA", "RGB", "RGBA", "I;16"}, {}),
    "jpg": ("jpeg", {"L", "RGB"}, {"quality": 95, "subsampling": 0}),
    "webp": ("webp", {"RGB", "RGBA"}, {"lossless": True, "exact": True}),
    "bmp": ("bmp", {"L", "RGB"}, {}),
    "tiff": ("tiff", {"L", "LA", "RGB", "RGBA", "I;16"}, {}),
}
"""Formats by their extension: Pillow's name, the modes that are read back as written, Pillow's options."""

MODE_NAMES = {"L": "grey", "LA": "grey with alpha", "I;16": "16-bit grey"}

MAX_READ_AT_ONCE = 1 << 24  # bytes; of larger files, which may be too large to be decoded, the header is read first


class DecodedImage(NamedTuple):
    """The content of an image file."""

    format: str  # "PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF" (by its content, whatever its name) or "NPY"
    mode: str  # "L" (grey), "LA", "RGB", "RGBA", "I;16" (16-bit grey), or of arrays "uint8 x C", "float64 x C"
    exif_transposed: bool  # its Exif orientation was applied
    pixels: np.ndarray  # uint8, uint16, or of any floats float32 [H, W, C]; arrays may be [D, H, W, C]


def decode(path: str | Path, *, values: bool = True) -> DecodedImage:
    """The image in a file.

    Args:
        values: False to find out in half the time whether a picture can be decoded: its `pixels` are zeros of its shape
            and type.  All data are decoded, but not copied, and of a JPEG file only the mean of 8x8 pixels is computed.

    Raises:
        ValueError: the reason why it cannot be read exactly as stored, without the path.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ValueError("empty: 0 bytes")
            if os.path.splitext(path)[1].lower() == ".npy":
                return _decode_array(file)
            # Pillow reads a few bytes at a time, which is quicker in memory.
            return _decode_picture(io.BytesIO(file.read(size)) if size <= MAX_READ_AT_ONCE else file, values)
    except OSError as error:
        raise ValueError(f"cannot be opened: {error.strerror or error}") from error


def unwritable_reason(format: str, shape: Sequence[int], dtype: np.dtype) -> str:
    """The reason why images of a shape and type cannot be files of a format, or "".

    Args:
        format: "png", "jpg", "webp", "bmp", "tiff" or "npy".
    """
    modes = {"uint8": {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}, "uint16": {1: "I;16"}}
    mode = modes.get(str(dtype), {}).get(shape[-1], "") if len(shape) == 3 else ""
    if format == "npy" or mode in WRITE_FORMATS[format][1]:
        return ""
    held = ", ".join(MODE_NAMES.get(mode, mode) for mode in MODES if mode in WRITE_FORMATS[format][1])
    able = [other for other, (_, modes, _) in WRITE_FORMATS.items() if other != "jpg" and mode in modes]
    return (
        f"{'x'.join(map(str, shape))} {np.dtype(dtype)} cannot be {format}, which holds {held}; "
        f"take {' or '.join([*able, 'npy'])}"
    )


def write_image(file: Path | BinaryIO, image: np.ndarray, format: str) -> None:
    """Writes an image such that `decode` reads the same values, except for "jpg", which is lossy.

    Args:
        image: uint8, uint16 or float32 [H, W, C] or [D, H, W, C].
        format: as in `unwritable_reason`.

    Raises:
        ValueError: if the format cannot hold it.
    """
    from PIL import Image

    refusal = unwritable_reason(format, image.shape, image.dtype)
    if refusal:
        raise ValueError(f"write_image: {refusal}")
    if format == "npy":
        return np.save(file, image, allow_pickle=False)
    name, _, options = WRITE_FORMATS[format]
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format=name, **options)


def resize_center_crop(pixels: np.ndarray, mode: str, size: tuple[int, ...], levels: int | ValueRange) -> np.ndarray:
    """The image at another size: the largest part in its middle of that aspect, resized.

    Pillow's Lanczos filter, antialiased, is applied to each channel in float32: on integers, Pillow rounds and clips
    between rows and columns, and lacks 16 bits.  Colours are weighted by their alpha.  Results are rounded and clipped
    to 0 .. levels - 1, or clipped to a range.

    Args:
        pixels, mode: as in `DecodedImage`.
        size: (H, W).

    Raises:
        ValueError: if it is a volume of another size.
    """
    from PIL import Image, ImageOps

    if pixels.shape[:-1] == tuple(size):
        return pixels
    if pixels.ndim != 3:
        raise ValueError(f"volumes are not resized, got {pixels.shape} for {size}")

    def resize(channel: np.ndarray) -> np.ndarray:  # the filter reaches beyond the part
        return np.asarray(ImageOps.fit(Image.fromarray(channel), (size[1], size[0]), Image.Resampling.LANCZOS))

    values = pixels.astype(np.float32)
    translucent = mode in ("LA", "RGBA")
    if translucent:
        values[..., :-1] *= values[..., -1:]
    result = np.stack([resize(channel) for channel in np.moveaxis(values, -1, 0)], -1)
    if translucent:
        alpha = result[..., -1:]
        result[..., :-1] = np.where(alpha >= 0.5, result[..., :-1] / np.maximum(alpha, 0.5), 0)
    if isinstance(levels, ValueRange):
        return np.clip(result, *levels)
    return np.clip(np.rint(result), 0, levels - 1).astype(pixels.dtype)


_HEADER_LOCK = threading.Lock()
"""numpy lets Python parse the header, which some versions of Python cannot do in two threads at once."""


def _decode_array(file: BinaryIO) -> DecodedImage:
    content = io.BytesIO(file.read())
    try:
        with _HEADER_LOCK:
            pixels = np.lib.format.read_array(content, allow_pickle=False)
    except Exception as error:  # a damaged header is read as Python and fails as Python does, in any way
        raise ValueError(f"not a .npy file, or not a whole one: {first_line(error)}") from error
    what = f"an array {pixels.dtype} {pixels.shape}"
    if pixels.dtype.str[1:] not in ARRAY_TYPES:
        raise ValueError(f"{what}; expected uint8, uint16 or floating point: {conversion_hint(pixels.dtype)}")
    if pixels.ndim not in (2, 3, 4) or pixels.size == 0:
        raise ValueError(f"{what}; expected an image, [H, W, C], or [H, W] of one channel, or a volume, [D, H, W, C]")
    if pixels.ndim > 2 and is_channels_first(pixels.shape):
        raise ValueError(f"{what}, channels first; expected [H, W, C]: save numpy.moveaxis(image, 0, -1)")
    pixels = pixels if pixels.ndim > 2 else pixels[..., None]
    mode = f"{pixels.dtype.name} x {pixels.shape[-1]}"
    if pixels.dtype.kind == "f":
        return DecodedImage("NPY", mode, False, to_finite_float32(what, pixels))
    return DecodedImage("NPY", mode, False, np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")))


def to_finite_float32(what: str, array: np.ndarray) -> np.ndarray:
    """A floating-point array in float32.

    Raises:
        ValueError: if a value is not finite in float32; the text begins with `what`.
    """
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(array, np.float32)
    bad = floats.size - np.count_nonzero(np.isfinite(floats))
    if bad:
        raise ValueError(f"{what}; {bad} of {floats.size} values are not finite numbers in float32")
    return floats


def conversion_hint(dtype: np.dtype) -> str:
    """Advice for an array of an unsupported type: a conversion that keeps its values."""
    if dtype.kind not in "biu":
        return "array.astype(numpy.float32) of real numbers"
    return (
        "array.astype(numpy.uint8) keeps integers of 0 to 255, numpy.uint16 those of 0 to 65535, and numpy.float32, "
        "with --data.range LOWEST HIGHEST, negative ones too"
    )


def read_array_header(archive: "Mapping[str, np.ndarray] | NpzFile", key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, in an .npz file from its header, without decompressing the array.

    Raises:
        ValueError: if it is not an array; for a damaged file, any error.
    """
    zipped = getattr(archive, "zip", None)
    if zipped is None:
        return archive[key].shape, archive[key].dtype
    if f"{key}.npy" not in zipped.namelist():
        raise ValueError("not an array")
    with zipped.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def check_memory(what: str, size: int) -> None:
    """Raises a ValueError if `size` bytes exceed this machine's memory; the text begins with `what`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"{what}: {size / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB of memory")


def too_large_reason(sides: Sequence[int]) -> str:
    """The refusal of an image (height, width) beyond Pillow's limit against decompression bombs, or ""."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS
    if most is None or math.prod(sides) <= most:
        return ""
    return f"too large to be decoded: {'x'.join(map(str, sides))}, more than {most:,} pixels"


def is_channels_first(shape: Sequence[int]) -> bool:
    """True if an image of shape [a, b, c] or [a, b, c, d] probably has its channels first."""
    return shape[0] in (1, 3) and min(shape[1:]) > 5


def _decode_picture(file: BinaryIO, values: bool) -> DecodedImage:
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

    head = file.read(26)
    file.seek(0)
    try:
        with Image.open(file, formats=READ_FORMATS) as image:
            refusal = _refusal_reason(image, head)
            if not refusal:
                turned = image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)  # 1 is upright
                if turned:
                    ImageOps.exif_transpose(image, in_place=True)
                pixels = _to_pixels(image) if values else _decode_to_zeros(image)
                return DecodedImage((image.format or "").replace("MPO", "JPEG"), mode_of_picture(image), turned, pixels)
    except UnidentifiedImageError:
        refusal = f"not an image, or a damaged one (none of {', '.join(READ_FORMATS)})"
    except Image.DecompressionBombError as error:
        refusal = f"too large to be decoded: {first_line(error)}"
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged bytes
        refusal = f"cannot be decoded, damaged or cut off: {first_line(error)}"
    raise ValueError(refusal)


def _to_pixels(image: "Image.Image") -> np.ndarray:
    pixels = np.asarray(image)
    return np.ascontiguousarray(np.atleast_3d(pixels), pixels.dtype.newbyteorder("="))


def _decode_to_zeros(image: "Image.Image") -> np.ndarray:
    shape = image.height, image.width, len(image.getbands())
    image.draft(None, (1, 1))  # a JPEG file is decoded to an eighth of its size, others as they are
    image.load()
    return np.zeros(shape, np.uint16 if mode_of_picture(image) == "I;16" else np.uint8)


def _refusal_reason(image: "Image.Image", head: bytes) -> str:
    """The reason why a picture that Pillow can read is refused, or ""."""
    from PIL.ExifTags import Base  # also the names of TIFF's own tags

    refusal = too_large_reason((image.height, image.width))
    if refusal:
        return refusal
    frames, tags, channels = getattr(image, "n_frames", 1), getattr(image, "tag_v2", {}), len(image.getbands())
    bits = max(np.atleast_1d(tags.get(Base.BitsPerSample, 1)))
    if image.format == "PNG" and head[12:16] == b"IHDR":
        bits = head[24]
    if frames > 1 and image.format != "MPO":  # cameras append previews and depths to a JPEG
        return f"animated, or several images in one file: {frames} frames; expected one image"
    if image.mode in ("P", "PA"):
        return f"mode {image.mode}, a palette: convert it to RGB (or L, if it is grey)"
    if image.mode == "1":
        return "mode 1, one bit per pixel: convert it to L, or save it as a .npy file with --data.levels 2"
    if mode_of_picture(image) not in MODES:
        return f"mode {image.mode}: convert it to one of {', '.join(MODES)}, or save it as a .npy file"
    if bits > 8 and mode_of_picture(image) != "I;16":
        return f"{bits} bits in each of {channels} channels, {SIXTEEN_BIT_HINT}"
    if "transparency" in image.info:
        return f"mode {image.mode} with one transparent colour, which would be lost: convert it to RGBA (or LA)"
    samples = tags.get(Base.SamplesPerPixel, channels)
    if samples != channels:
        return f"{samples} channels, of which Pillow reads {image.mode}: save it as a .npy file"
    if bits > 8 and tags.get(Base.PhotometricInterpretation) == 0:
        return "16-bit grey with 0 for white: invert it"
    return ""


def mode_of_picture(image: "Image.Image") -> str:
    """Pillow's mode of a picture; "I;16" for 16-bit grey of any byte order."""
    return "I;16" if image.mode.startswith("I;16") else image.mode
