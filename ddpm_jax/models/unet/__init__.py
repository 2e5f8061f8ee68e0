"""The U-Net of DDPM (arXiv:2006.11239v2, appendix B), as the paper's own weights have it, for images of any size,
and for sequences and volumes.

Modules and parameters bear the names of the original's variables (`down_1/attn_0/q`, `mid/block_1/temb_proj`, ...), so
foreign weights map one to one.  Parameters are float32; `dtype` is what convolutions and products are computed in;
normalisation, softmax, the time embedding and the last convolution are float32 at least, whatever `dtype` is.

Files: `network` (the U-Net and its levels), `layers`, `attention`, `convolution` and `parameters` (what they are made
of), `norm` (group normalisation), `conventions` (in what published networks differ), `checks` (what is refused).
"""

from ddpm_jax.models.unet.attention import AttentionBlock, CrossAttention, attend
from ddpm_jax.models.unet.compat import OPENAI, CompatOptions
from ddpm_jax.models.unet.layers import Downsample, ResnetBlock, Upsample, dropout, timestep_embedding
from ddpm_jax.models.unet.network import UNet
from ddpm_jax.models.unet.norm import GroupNorm

__all__ = [
    "OPENAI", "AttentionBlock", "CompatOptions", "CrossAttention", "Downsample", "GroupNorm", "ResnetBlock", "UNet",
    "Upsample", "attend", "dropout", "timestep_embedding",
]  # fmt: skip
