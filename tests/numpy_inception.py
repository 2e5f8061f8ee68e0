"""Inception-v3 in numpy, layer by layer from its published graph, with random weights under torch-fidelity's names."""

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class Network:
    """Makes a layer's weights, float32, when an image first goes through it: `weights` has them by name."""

    def __init__(self, seed=0):
        self.random, self.weights = np.random.default_rng(seed), {}

    def __call__(self, image):
        """[H, W, 3] over 0 .. 255 -> features [2048], logits [1008]."""
        conv, maximum, mean = self.conv, self.maximum, self.mean
        x = (resized(image) - 128) / 128
        x = conv(x, "Conv2d_1a_3x3", 32, 3, 3, stride=2)
        x = conv(x, "Conv2d_2a_3x3", 32, 3, 3)
        x = conv(x, "Conv2d_2b_3x3", 64, 3, 3, 1, 1)
        x = maximum(x, 2)
        x = conv(x, "Conv2d_3b_1x1", 80)
        x = conv(x, "Conv2d_4a_3x3", 192, 3, 3)
        x = maximum(x, 2)
        assert x.shape == (35, 35, 192)
        for block, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            c = functools.partial(self.branch, block)
            five = c(c(x, "branch5x5_1", 48), "branch5x5_2", 64, 5, 5, 2, 2)
            three = c(c(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3, 3, 1, 1)
            three = c(three, "branch3x3dbl_3", 96, 3, 3, 1, 1)
            x = joined(c(x, "branch1x1", 64), five, three, c(mean(x), "branch_pool", pooled))
        assert x.shape == (35, 35, 288)
        c = functools.partial(self.branch, "Mixed_6a")
        three = c(c(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3, 3, 1, 1)
        three = c(three, "branch3x3dbl_3", 96, 3, 3, stride=2)
        x = joined(c(x, "branch3x3", 384, 3, 3, stride=2), three, maximum(x, 2))
        assert x.shape == (17, 17, 768)
        for block, n in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            c = functools.partial(self.branch, block)
            seven = c(c(x, "branch7x7_1", n), "branch7x7_2", n, 1, 7, 0, 3)
            seven = c(seven, "branch7x7_3", 192, 7, 1, 3, 0)
            twice = c(c(x, "branch7x7dbl_1", n), "branch7x7dbl_2", n, 7, 1, 3, 0)
            twice = c(c(twice, "branch7x7dbl_3", n, 1, 7, 0, 3), "branch7x7dbl_4", n, 7, 1, 3, 0)
            twice = c(twice, "branch7x7dbl_5", 192, 1, 7, 0, 3)
            x = joined(c(x, "branch1x1", 192), seven, twice, c(mean(x), "branch_pool", 192))
        c = functools.partial(self.branch, "Mixed_7a")
        three = c(c(x, "branch3x3_1", 192), "branch3x3_2", 320, 3, 3, stride=2)
        seven = c(c(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, 1, 7, 0, 3)
        seven = c(c(seven, "branch7x7x3_3", 192, 7, 1, 3, 0), "branch7x7x3_4", 192, 3, 3, stride=2)
        x = joined(three, seven, maximum(x, 2))
        assert x.shape == (8, 8, 1280)
        for block, pool in (("Mixed_7b", mean), ("Mixed_7c", functools.partial(maximum, pad=1))):
            c = functools.partial(self.branch, block)
            three = c(x, "branch3x3_1", 384)
            three = joined(c(three, "branch3x3_2a", 384, 1, 3, 0, 1), c(three, "branch3x3_2b", 384, 3, 1, 1, 0))
            twice = c(c(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, 3, 3, 1, 1)
            twice = joined(c(twice, "branch3x3dbl_3a", 384, 1, 3, 0, 1), c(twice, "branch3x3dbl_3b", 384, 3, 1, 1, 0))
            x = joined(c(x, "branch1x1", 320), three, twice, c(pool(x), "branch_pool", 192))
        features = x.mean((0, 1))
        matrix = self.weight("fc.weight", lambda r: r.standard_normal((1008, 2048)) / 2048**0.5)
        self.weight("fc.bias", lambda r: r.standard_normal(1008))
        return features, matrix @ features

    def weight(self, name, draw):
        if name not in self.weights:
            self.weights[name] = draw(self.random).astype(np.float32)
        return self.weights[name]

    def branch(self, block, x, name, *layer, **options):
        return self.conv(x, f"{block}.{name}", *layer, **options)

    def conv(self, x, name, channels, height=1, width=1, pad_y=0, pad_x=0, stride=1):
        """Convolution, normalisation, ReLU of x [H, W, C]."""
        shape = (channels, x.shape[-1], height, width)
        gain = (2 / np.prod(shape[1:])) ** 0.5
        kernel = self.weight(f"{name}.conv.weight", lambda r: gain * r.standard_normal(shape))
        scale = self.weight(f"{name}.bn.weight", lambda r: r.uniform(0.8, 1.2, channels))
        shift = self.weight(f"{name}.bn.bias", lambda r: 0.1 * r.standard_normal(channels))
        mean = self.weight(f"{name}.bn.running_mean", lambda r: 0.1 * r.standard_normal(channels))
        var = self.weight(f"{name}.bn.running_var", lambda r: r.uniform(0.8, 1.3, channels))
        self.weights.setdefault(f"{name}.bn.num_batches_tracked", np.int64(7))
        padded = np.pad(x, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)))
        windows = sliding_window_view(padded, (height, width), (0, 1))[::stride, ::stride]
        y = np.tensordot(windows, kernel, ((2, 3, 4), (1, 2, 3)))
        return np.maximum((y - mean) / np.sqrt(var + 0.001) * scale + shift, 0)

    @staticmethod
    def maximum(x, stride=1, pad=0):
        padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)), constant_values=-np.inf)
        return sliding_window_view(padded, (3, 3), (0, 1))[::stride, ::stride].max((3, 4))

    @staticmethod
    def mean(x):
        """Of the pixels inside: nan is outside."""
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
        return np.nanmean(sliding_window_view(padded, (3, 3), (0, 1)), (3, 4))


def joined(*branches):
    return np.concatenate(branches, -1)


def resized(image):
    """As TensorFlow 1: row i of 299 is at i H / 299, between two rows, and at the end the last one."""
    for _ in range(2):
        n = len(image)
        at = np.arange(299) * n / 299
        rows = np.concatenate([image, image[-1:]])
        below = np.floor(at).astype(int)
        part = (at - below)[:, None, None]
        image = (rows[below] * (1 - part) + rows[below + 1] * part).swapaxes(0, 1)
    return image.astype(np.float32)


@functools.cache
def example():
    """The network, an image [40, 23, 3] uint8, and its features and logits."""
    network, image = Network(), np.random.default_rng(1).integers(0, 256, (40, 23, 3)).astype(np.uint8)
    return network, image, network(image)
