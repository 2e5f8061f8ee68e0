"""The U-Net of DDPM (arXiv:2006.11239v2, appendix B), for images of any size, sequences and volumes.

Modules and parameters have the names of the original's variables (`down_1/attn_0/q`, `mid/block_1/temb_proj`, ...), so
published weights map one to one.  Parameters are float32; convolutions and products are computed in `dtype`;
normalisation, softmax, the time embedding and the last convolution are float32 at least, whatever `dtype` is.

Files: `network` (the U-Net and its levels), `layers`, `attention`, `convolution`, `norm`, `parameters`, `compat`
(options for published networks), `checks` (errors of options and arguments).
"""

from ddpm_jax.models.unet.attention import AttentionBlock, CrossAttention, attend
from ddpm_jax.models.unet.compat import OPENAI, CompatOptions
from ddpm_jax.models.unet.layers import Dense, Downsample, ResnetBlock, Upsample, dropout, timestep_embedding
from ddpm_jax.models.unet.network import UNet
from ddpm_jax.models.unet.norm import GroupNorm

__all__ = [
    "OPENAI", "AttentionBlock", "CompatOptions", "CrossAttention", "Dense", "Downsample", "GroupNorm", "ResnetBlock",
    "UNet", "Upsample", "attend", "dropout", "timestep_embedding",
]  # fmt: skip
