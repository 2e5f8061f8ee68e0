"""Makes torch_zip.pt and torch_old.pt: the same tensors in both of PyTorch's file formats, by PyTorch 2.13.

pip install torch
python tests/goldens/make_torch.py
"""

import collections
import pathlib

import torch

if __name__ == "__main__":
    table = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = collections.OrderedDict(
        table=table,
        part=table[1:3, 2:5],  # the same storage
        turned=table.T,
        scalar=torch.tensor(3.5, dtype=torch.float64),
        empty=torch.zeros(0, 3),
        half=torch.arange(3).half(),
        narrow=torch.arange(5, dtype=torch.bfloat16),
        steps=torch.tensor(7),
        parameter=torch.nn.Parameter(torch.tensor([True, False]), requires_grad=False),
    )
    folder = pathlib.Path(__file__).parent
    torch.save(tensors, folder / "torch_zip.pt")
    torch.save(tensors, folder / "torch_old.pt", _use_new_zipfile_serialization=False)
