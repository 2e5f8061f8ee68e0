"""Conversions of images to [-1, 1] and back, and pictures of them: grids, trajectories, PNG and GIF.

Nothing else in the package converts to and from [-1, 1], or makes pictures for viewing (`image_files` writes images as
data).  An image of `levels` levels holds the integers 0 .. levels - 1: 17 for the digits, 256 for 8 bits, 65536 for 16
bits.  Floating-point images have a `ValueRange` in place of levels.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND = 128  # mid grey: neither the black nor the white that images end in
LAST_FRAME_MS = 1500  # milliseconds
MAX_SLICES = 8  # slices of a volume in a picture


class ValueRange(NamedTuple):
    """The values of floating-point images that become -1 and 1, in place of the levels of integer images."""

    low: float
    high: float


class PngImage(NamedTuple):
    """The content of a PNG file: image uint8 [H, W, 1 | 3 | 4], and the text written into it."""

    image: np.ndarray
    text: dict[str, str]


def to_value_range(ends: Sequence[float]) -> ValueRange | None:
    """The range from a low to a high end; None for no ends.

    Raises:
        ValueError: if there are not two ends, or they are not ascending with a distance of 1e-37 to 1e38.
    """
    if not len(ends):
        return None
    with np.errstate(over="ignore"):
        low, high = (float(np.float32(end)) for end in ends) if len(ends) == 2 else (math.nan, math.nan)
    if not (math.isfinite(low) and math.isfinite(high) and 1e-37 < high - low < 1e38):
        raise ValueError(f"range must be the lowest and the highest value, as 0 1, got {' '.join(map(str, ends))}")
    return ValueRange(low, high)


def normalize(images: np.ndarray | jax.Array, levels: int | ValueRange) -> Any:
    """Images as float32 in [-1, 1]:  x = 2 v / (levels - 1) - 1,  or  x = 2 (v - low) / (high - low) - 1 in a range.

    For 8 bits this is v / 127.5 - 1.  Levels v and levels - 1 - v differ only in sign, and the ends of 17, 256 and
    65536 levels are exactly -1 and 1 (of some other numbers of levels, 1 - 2^-24).  Numpy arrays are converted by
    numpy, to the same bits, and nothing is compiled.

    Args:
        images: uint8 or uint16, any shape, values 0 .. levels - 1; float32 with a range.  Values are not checked: this
            runs inside compiled code.

    Raises:
        ValueError: if images are of another type, or their type has fewer levels.
    """
    if isinstance(levels, ValueRange):
        if images.dtype != np.float32:
            raise ValueError(f"normalize: expected float32 images for a range {levels[:]}, got {images.dtype}")
        # A difference, then a product, which no compiler fuses.
        middle, scale = np.float32((levels.low + levels.high) / 2), np.float32(2 / (levels.high - levels.low))
        return (images - middle) * scale
    _check_integers("normalize", images, levels)
    # A single product of exact integers.  Compilers turn a division by a constant into a product with its reciprocal
    # and fuse a product with the - 1 after it: an image's last bits would depend on the program that scales it.
    twice = 2 * images.astype(np.int32) - (levels - 1)
    return twice.astype(np.float32) * (1 / (levels - 1))


def denormalize(x: np.ndarray | jax.Array, levels: int | ValueRange) -> np.ndarray:
    """Images in [-1, 1] as integers, see `to_integer`, or as float32 from low to high; values outside are clipped.

    Raises:
        ValueError: as `to_integer`.
    """
    if not isinstance(levels, ValueRange):
        return to_integer(x, levels)
    x, (low, high) = _finite("denormalize", x), levels
    return np.clip((low + high) / 2 + x.astype(np.float64) * ((high - low) / 2), low, high).astype(np.float32)


def to_integer(x: np.ndarray | jax.Array, levels: int) -> np.ndarray:
    """Images in [-1, 1] as integers 0 .. levels - 1: values are clipped and rounded to the nearest level.

    It is the exact inverse of `normalize` for every level of up to 16 bits in float32.  Runs on the host.

    Args:
        x: floating point, any shape, data units.

    Returns:
        uint8 for up to 256 levels, uint16 for more.

    Raises:
        ValueError: if x is not floating point or has non-finite values, or levels is not in 2 .. 65536.
    """
    _check_levels("to_integer", levels)
    x = _finite("to_integer", x)
    # The original truncates, so only x = 1 itself is the highest level and images darken by half a level on average.
    y = np.clip(x, -1, 1, out=np.empty_like(x))  # an array also where x has no axes
    y += 1
    y *= (levels - 1) / 2
    return np.rint(y, out=y).astype(np.uint8 if levels <= 256 else np.uint16)


def make_grid(
    images: np.ndarray | jax.Array,
    levels: int | ValueRange,
    *,
    columns: int | None = None,
    rows: int | None = None,
    padding: int = 1,
) -> np.ndarray:
    """One picture of many images, filled row by row or, if `rows` is given, column by column.

    One channel is shown as grey, three as RGB, four as RGBA; otherwise the channels are shown side by side as grey.  Of
    a volume, slices are shown side by side: all of up to eight, or eight evenly spaced from the first to the last.  The
    picture has 8 bits for any number of levels.

    Args:
        images: uint8 or uint16 [N, H, W, C] or [N, D, H, W, C], values 0 .. levels - 1; float32 with a range.
        columns: images per row; by default the grid is square.
        rows: images per column, in place of `columns`.
        padding: pixels of grey around each image.

    Returns:
        uint8 [H', W', 1 | 3 | 4].

    Raises:
        ValueError: if images are not as described (floats go through `to_integer` first), or an option is out of range.
    """
    cells = _cells(images, levels)
    count, height, width, channels = cells.shape
    line = (math.ceil(math.sqrt(count)) if columns is None else columns) if rows is None else rows
    if line < 1 or padding < 0 or None not in (columns, rows):
        raise ValueError(
            "make_grid: expected columns or rows, not both, >= 1 and padding >= 0, "
            f"got columns={columns}, rows={rows}, padding={padding}"
        )
    down, right, lines = height + padding, width + padding, -(-count // line)
    shape = (lines, line) if rows is None else (line, lines)
    canvas = np.full((shape[0] * down + padding, shape[1] * right + padding, channels), BACKGROUND, np.uint8)
    if channels == 4:
        canvas[..., 3] = 255
    for i, cell in enumerate(cells):
        row, column = divmod(i, line) if rows is None else divmod(i, line)[::-1]
        top, left = padding + row * down, padding + column * right
        canvas[top : top + height, left : left + width] = cell
    return canvas


def preview_scale(shape: Sequence[int]) -> int:
    """The scale at which eight images of shape (H, W, C) or (D, H, W, C) are about 512 pixels wide, at least 1."""
    return max(1, 512 // 8 // (shape[-2] * (min(shape[0], MAX_SLICES) if len(shape) == 4 else 1)))


def make_trajectory_grid(rows: Sequence[np.ndarray | jax.Array]) -> np.ndarray:
    """One picture of trajectories: a line for each row, time from left to right.

        make_trajectory_grid([x[:, i], x0[:, i]])      # x_t of image i above the network's prediction of x_0

    Args:
        rows: each floating point [frames, H, W, C] or [frames, D, H, W, C], all of one shape, in [-1, 1].  Values
            outside, as in a noisy x_t, are clipped.

    Returns:
        uint8 [H', W', 1 | 3 | 4]; channels as in `make_grid`.

    Raises:
        ValueError: if there are no rows or they differ in shape, and as `to_integer` and `make_grid`.
    """
    shapes = [row.shape for row in rows]
    if not shapes or len(set(shapes)) != 1 or len(shapes[0]) not in (4, 5):
        raise ValueError(f"make_trajectory_grid: expected rows [frames, H, W, C] of one shape, got shapes {shapes}")
    return make_grid(np.concatenate([to_integer(row, 256) for row in rows]), 256, columns=shapes[0][0])


def write_png(path: str | Path, image: np.ndarray, *, scale: int = 1, text: Mapping[str, str] | None = None) -> None:
    """Writes a picture as a PNG file, each pixel as a square of `scale` pixels, with `text` in the file.

    Args:
        image: uint8 [H, W, 1 | 3 | 4], as `make_grid` makes it.
        text: names (1 to 79 latin-1 characters) and values, kept in tEXt chunks (iTXt where a value is not latin-1).

    Raises:
        ValueError: if the image, the scale or the text is not as described.
    """
    from PIL.PngImagePlugin import PngInfo

    picture = _pillow("write_png", image, scale)
    chunks = PngInfo()
    for name, value in (text or {}).items():
        if not isinstance(value, str):
            raise ValueError(f"write_png: expected text values of type str, got {name!r}: {value!r}")
        if not 1 <= len(name) <= 79 or not name.isprintable() or ord(max(name)) > 255:
            raise ValueError(f"write_png: expected text names of 1 to 79 printable latin-1 characters, got {name!r}")
        chunks.add_text(name, value)
    picture.save(path, format="PNG", pnginfo=chunks)


def read_png(path: str | Path) -> PngImage:
    """The picture in a PNG file and the text written with it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a PNG, damaged, or not of 8-bit grey, RGB or RGBA.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as file:
            pixels, mode = np.array(file), file.mode
            text = {str(name): str(value) for name, value in getattr(file, "text", {}).items()}
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: not a PNG file, or a damaged one: {error}") from error
    if mode not in ("L", "RGB", "RGBA"):
        raise ValueError(f"{path}: expected a PNG of mode L, RGB or RGBA, got mode {mode}")
    return PngImage(pixels if pixels.ndim == 3 else pixels[..., None], text)


def write_gif(path: str | Path, frames: Sequence[np.ndarray], *, scale: int = 1, duration: int = 100) -> None:
    """Writes pictures as an endless GIF animation, whose last frame is shown for 1.5 s.

    Grey is exact.  Colours are reduced to 256 per frame, without dithering, and RGBA is shown over grey.  A frame equal
    to the one before prolongs that one.

    Args:
        frames: each uint8 [H, W, 1 | 3 | 4], all of one shape, as `make_grid` makes them.
        duration: milliseconds per frame, at least 20; a GIF counts in tens.

    Raises:
        ValueError: if there are no frames, they differ in shape, or one of them or an option is not as described.
    """
    shapes = sorted({frame.shape for frame in frames})
    if len(shapes) != 1:
        raise ValueError(f"write_gif: expected frames of one shape, got shapes {shapes}")
    if duration < 20:
        raise ValueError(f"write_gif: expected a duration of at least 20 ms (viewers slow faster ones), got {duration}")
    first_frame, *rest = [_paletted(_pillow("write_gif", frame, scale)) for frame in frames]
    durations = [duration] * len(rest) + [max(LAST_FRAME_MS, duration)]
    first_frame.save(path, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)


def _pillow(caller: str, image: np.ndarray, scale: int) -> "Image.Image":
    """The picture as Pillow's, each pixel as a square; a ValueError begins with the caller."""
    from PIL import Image, ImageOps

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or image.size == 0:
        raise ValueError(f"{caller}: expected a picture uint8 [H, W, 1 | 3 | 4], got {image.dtype} {image.shape}")
    if scale < 1:
        raise ValueError(f"{caller}: expected scale >= 1, got {scale}")
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return ImageOps.scale(picture, scale, Image.Resampling.NEAREST)


def _paletted(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    if picture.mode == "L":
        return picture
    if picture.mode == "RGBA":
        over = Image.new("RGBA", picture.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
        picture = Image.alpha_composite(over, picture).convert("RGB")
    return picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _cells(images: np.ndarray | jax.Array, levels: int | ValueRange) -> np.ndarray:
    """Images or volumes as uint8 [N, H, W', 1 | 3 | 4] over the full range of 8 bits."""
    if isinstance(levels, ValueRange):
        images, levels = to_integer(normalize(images, levels), 256), 256
    _check_integers("make_grid", images, levels)
    images = np.asarray(images)
    if images.ndim not in (4, 5) or images.size == 0:
        raise ValueError(f"make_grid: expected images [N, H, W, C], none of them 0, got shape {images.shape}")
    if images.max() >= levels:
        raise ValueError(f"make_grid: images hold the value {images.max()}, above levels - 1 = {levels - 1}")
    if images.ndim == 5:
        depth = images.shape[1]
        shown = images[:, np.linspace(0, depth - 1, min(depth, MAX_SLICES)).round().astype(int)]
        images = np.concatenate(np.moveaxis(shown, 1, 0), axis=2)
    if levels != 256:
        images = np.rint(images * (255 / (levels - 1)))
    count, height, width, channels = images.shape
    if channels not in (1, 3, 4):
        images = np.moveaxis(images, -1, 2).reshape(count, height, channels * width, 1)
    return images.astype(np.uint8)


def _finite(caller: str, x: np.ndarray | jax.Array) -> np.ndarray:
    """x as float32 or float64 on the host, of finite values only."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{caller}: expected floating point in [-1, 1], got {x.dtype}: are these integers already?")
    x = np.asarray(x) if x.dtype in (np.float32, np.float64) else np.asarray(x, np.float32)
    bad = x.size - np.count_nonzero(np.isfinite(x))
    if bad:
        raise ValueError(f"{caller}: {bad} of {x.size} values are non-finite (nan or inf); they have no level")
    return x


def _check_levels(caller: str, levels: int) -> None:
    if not 2 <= levels <= 65536:
        raise ValueError(f"{caller}: expected 2 to 65536 levels, got levels={levels}")


def _check_integers(caller: str, images: np.ndarray | jax.Array, levels: int) -> None:
    _check_levels(caller, levels)
    if images.dtype not in (np.uint8, np.uint16):
        hint = "; to_integer makes them from [-1, 1]" if jnp.issubdtype(images.dtype, jnp.floating) else ""
        raise ValueError(f"{caller}: expected images of type uint8 or uint16, got {images.dtype}{hint}")
    if levels > jnp.iinfo(images.dtype).max + 1:
        raise ValueError(f"{caller}: levels={levels} do not fit in images of type {images.dtype}")
