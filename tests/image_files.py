"""Files of images, whole and damaged, as the tests of folders need them."""

import io

import numpy as np
from PIL import Image


def random_pixels(*shape, dtype: type = np.uint8, seed=0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def encoded(pixels, form, **options) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form, **options)
    return file.getvalue()


def truncated(pixels, form) -> bytes:
    """Two thirds of a picture file."""
    whole = encoded(pixels, form)
    return whole[: len(whole) * 2 // 3]


def animation(form, mode="RGB") -> bytes:
    """A file of three frames."""
    frames = [Image.fromarray(random_pixels(8, 8, 3, seed=i)).convert(mode) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, format=form, save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def converted(mode, form, **options) -> bytes:
    """A picture in a mode of Pillow's."""
    file = io.BytesIO()
    Image.fromarray(random_pixels(8, 8, 3)).convert(mode).save(file, format=form, **options)
    return file.getvalue()
