"""Makes frechet.npz: two small sets of features and what torch-fidelity 0.4.0 says of them.

    pip install torch torch-fidelity==0.4.0
    python tests/goldens/make_frechet.py

`generated` [300, 16] and `real` [250, 16] are float32, correlated, and differ in mean and in some of their directions.
torch-fidelity gets them as float64, since its own mean and distances keep the precision that they are given.  Its names
for results are kept; precision and recall are for its 3 neighbours and, as `precision_5`, for 5.
"""

import pathlib

import numpy as np
import torch
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc


def features(seed: int, n: int, shift: float, width: float) -> np.ndarray:
    mixing = np.random.RandomState(0).normal(size=(16, 16)) / 4
    draw = np.random.RandomState(seed).normal(size=(n, 16))
    draw[:, :4] *= width
    return (draw @ mixing + shift * np.linspace(-1, 1, 16)).astype(np.float32)


def results(generated: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    statistics = [metric_fid.fid_features_to_statistics(each) for each in (generated, real)]
    found = dict(metric_fid.fid_statistics_to_metric(*statistics, verbose=False))
    found |= metric_prc.prc_features_to_metric(generated, real, verbose=False)
    five = metric_prc.prc_features_to_metric(generated, real, prc_neighborhood=5, verbose=False)
    found |= {f"{name}_5": value for name, value in five.items()}
    found |= metric_kid.kid_features_to_metric(generated, real, kid_subset_size=100, verbose=False)
    return found | metric_isc.isc_features_to_metric(generated)


if __name__ == "__main__":
    generated, real = features(1, 300, 0.3, 1.6), features(2, 250, 0.0, 1.0)
    found = results(*(torch.from_numpy(each.astype(np.float64)) for each in (generated, real)))
    print(found)
    np.savez_compressed(pathlib.Path(__file__).with_name("frechet.npz"), generated=generated, real=real, **found)
