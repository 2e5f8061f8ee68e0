"""Features of Inception-v3, for scores that are comparable with published ones: FID, Inception score, KID.

The network is torch-fidelity's port of the one with which FID and Inception score were published, weights of 5 December
2015; other ports and torchvision's Inception have other features.  It is an optional extra, `pip install
'ddpm-jax[eval]'`; `load` imports torch.

Two protocols, chosen by the type of the images, not to be mixed within a comparison:

    integers    rounded to 8 bits, as published FIDs of saved images are
    float32     clipped but not rounded, as in DDPM's own code (8-bit data are the same in both)
"""

import hashlib
import importlib
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from ddpm_jax.metrics import check_values

SHUFFLE_SEED = 2020  # torch-fidelity's own, so that its command line finds the same scores


class InceptionOutput(NamedTuple):
    """Features and logits of n images.

    Attributes:
        features: float32 [n, 2048], the last average pool: for FID, KID, precision and recall.
        logits: float32 [n, 1008], without the last layer's bias, as in the published Inception score.
    """

    features: np.ndarray
    logits: np.ndarray


class Score(NamedTuple):
    """A mean over splits or subsets of the images, and the standard deviation among them (not the mean's error)."""

    mean: float
    std: float


class Inception:
    """Inception-v3, images -> `InceptionOutput`; see `load`.

    Attributes:
        name: of the network, as torch-fidelity calls it.
        dimension: of the features.
        fingerprint: 12 hex digits of the SHA-256 of the weights: scores of different fingerprints do not compare.
        levels: of the images that it takes, which hold values 0 .. levels - 1.
    """

    name = "inception-v3-compat"
    dimension = 2048

    def __init__(self, network: Any, levels: int, batch: int) -> None:
        digest = hashlib.sha256()
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        self.levels, self.fingerprint = levels, digest.hexdigest()[:12]
        self._network, self._batch = network, batch

    def __call__(self, images: np.ndarray) -> InceptionOutput:
        """Features and logits of images, batch after batch; one channel is repeated to grey RGB.

        Values are scaled to 0 .. 255 and integers rounded to 8 bits; float32 is not rounded.

        Args:
            images: uint8, uint16 or float32 [n, H, W, 1 | 3], values 0 .. levels - 1.

        Raises:
            ValueError: if images are not as described.
        """
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
            raise ValueError(f"Inception: expected images [n, H, W, 1 | 3], none of them 0, got shape {images.shape}")
        check_values("Inception", images, self.levels)
        features = np.empty((len(images), self.dimension), np.float32)
        logits = np.empty((len(images), self._network.fc.out_features), np.float32)
        for start in range(0, len(images), self._batch):
            rows = slice(start, start + self._batch)
            features[rows], logits[rows] = self._extract(_to_channels_first(images[rows], self.levels))
        return InceptionOutput(features, logits)

    def _extract(self, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and logits of one batch [b, 3, H, W] over 0 .. 255, uint8 or float32."""
        torch = _import_optional("torch")
        network = self._network
        x = torch.from_numpy(planes).to(network.fc.weight.device)
        with torch.no_grad():
            if planes.dtype == np.uint8:
                output = network(x)
            else:
                # The network takes uint8 alone: it gets zeros of that type, and a hook gives the preprocessed floats
                # to its first convolution.
                preprocessed = _preprocess(x, network.INPUT_IMAGE_SIZE)
                hook = network.Conv2d_1a_3x3.register_forward_pre_hook(lambda *_: (preprocessed,))
                try:
                    output = network(torch.zeros((len(x), 3, 1, 1), dtype=torch.uint8, device=x.device))
                finally:
                    hook.remove()
        features, logits = (part.cpu().numpy() for part in output)
        return features, logits


def load(
    levels: int, *, weights: str | None = None, device: Literal["cpu", "cuda"] | None = None, batch: int = 64
) -> Inception:
    """Inception-v3 for images of `levels` levels.

    Args:
        levels: the images hold values 0 .. levels - 1.
        weights: a file with the network's state dict; None is torch-fidelity's, 90 MB, downloaded at the first use to
            torch's folder of models.  torch-fidelity unpickles the file, which can run code: use trusted files only.
        device: None is a GPU if torch finds one.  JAX must leave memory on it for torch.  By default torch's GPU
            convolutions round to TF32, so the last digits differ from those of a CPU.
        batch: images at a time; changes the last bits of the features at most.

    Raises:
        ModuleNotFoundError: if the extra is not installed, with the command that installs it.
        ValueError: if an argument is out of range, or device is "cuda" and torch finds no GPU.
    """
    if not 2 <= levels <= 65536:
        raise ValueError(f"load: expected 2 to 65536 levels, got levels={levels}")
    if batch < 1:
        raise ValueError(f"load: expected batch >= 1, got {batch}")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"load: expected device 'cpu', 'cuda' or None, got {device!r}")
    extractor = _import_optional("torch_fidelity").FeatureExtractorInceptionV3
    gpu = _import_optional("torch").cuda.is_available()
    if device == "cuda" and not gpu:
        raise ValueError("load: device='cuda', but torch finds no GPU; device=None takes one where there is one")
    network = extractor(Inception.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    return Inception(network.to(device or ("cuda" if gpu else "cpu")), levels, batch)


def inception_score(logits: np.ndarray, *, splits: int = 10) -> Score:
    """The Inception score, by torch-fidelity.  The mean over splits of

        exp(mean over x of KL(p(y|x) || mean over x of p(y|x)))

    Improved Techniques for Training GANs (arXiv:1606.03498), section 4.  The images are shuffled by a fixed seed and
    cut into splits of n / splits.  The score grows with a split's size: compare at equal n and splits.

    Args:
        logits: floating point [n, classes], n >= splits.
        splits: 10 is usual; DDPM's own code takes 1.

    Raises:
        ValueError: if the logits are not as described, or splits is less than 1.
    """
    _check_rows("inception_score", "logits", logits)
    if not 1 <= splits <= len(logits):
        raise ValueError(f"inception_score: expected splits in 1 .. {len(logits)}, the images, got {splits}")
    metric = _import_optional("torch_fidelity.metric_isc")
    score = metric.isc_features_to_metric(_tensor(logits), splits=splits, shuffle=True, rng_seed=SHUFFLE_SEED)
    return Score(score[metric.KEY_METRIC_ISC_MEAN], score[metric.KEY_METRIC_ISC_STD])


def kernel_distance(
    features: np.ndarray, reference: np.ndarray, *, subsets: int = 100, subset_size: int = 1000
) -> Score:
    """The kernel Inception distance (KID), by torch-fidelity.  The mean over random subsets of the unbiased estimate of

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x . y / d + 1)^3

    Demystifying MMD GANs (arXiv:1801.01401), section 4.  Unlike the FID its expectation does not depend on n; it can be
    a little less than 0.  Computed in the features' own precision.

    Args:
        features, reference: both float32 or both float64 [n, d], n at least 2 and of each its own.
        subset_size: rows drawn from each, without replacement; all of the smaller set where that has fewer.

    Raises:
        ValueError: if the features are not as described, or an option is out of range.
    """
    _check_rows("kernel_distance", "features", features)
    _check_rows("kernel_distance", "reference", reference)
    if features.dtype != reference.dtype or features.shape[1] != reference.shape[1]:
        described = f"{features.dtype} {features.shape} and {reference.dtype} {reference.shape}"
        raise ValueError(f"kernel_distance: expected two sets [n, d] of one type and one d, got {described}")
    size = min(subset_size, len(features), len(reference))
    if size < 2 or subsets < 1:
        raise ValueError(
            "kernel_distance: expected subsets >= 1 and subsets of at least 2 rows, got "
            f"subsets={subsets}, subset_size={subset_size}, {len(features)} and {len(reference)} rows"
        )
    metric = _import_optional("torch_fidelity.metric_kid")
    options = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": SHUFFLE_SEED, "verbose": False}
    score = metric.kid_features_to_metric(_tensor(features), _tensor(reference), **options)
    return Score(score[metric.KEY_METRIC_KID_MEAN], score[metric.KEY_METRIC_KID_STD])


def _import_optional(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"metrics.inception needs {missing.name}, which is not installed: pip install 'ddpm-jax[eval]'",
            name=missing.name,
        ) from missing


def _preprocess(x: Any, size: int) -> Any:
    """The network's preprocessing of images [b, 3, H, W] over 0 .. 255: resized as by TensorFlow 1, scaled."""
    resize = _import_optional("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    return (resize(x, size=(size, size), align_corners=False) - 128) / 128


def _to_channels_first(images: np.ndarray, levels: int) -> np.ndarray:
    """Images [b, H, W, 1 | 3] as a new array [b, 3, H, W] over 0 .. 255: float32 of floats, uint8 of integers."""
    kind = np.float32 if images.dtype == np.float32 else np.uint8
    if levels != 256:
        rescaled = images * (255 / (levels - 1))
        images = rescaled if kind == np.float32 else np.rint(rescaled)
    planes = np.moveaxis(np.broadcast_to(images, (*images.shape[:3], 3)), -1, 1)
    return np.array(planes, kind, order="C")


def _tensor(rows: np.ndarray) -> Any:
    # torch warns of arrays that it may not write to, such as files that numpy maps: those are copied
    return _import_optional("torch").from_numpy(np.require(rows, requirements=["C", "W"]))


def _check_rows(caller: str, name: str, rows: np.ndarray) -> None:
    if rows.ndim != 2 or rows.dtype not in (np.float32, np.float64):
        raise ValueError(f"{caller}: expected {name} float32 or float64 [n, d], got {rows.dtype} {rows.shape}")
