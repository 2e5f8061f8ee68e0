"""Checkpoints of OpenAI's improved-diffusion (arXiv:2102.09672) and guided-diffusion (arXiv:2105.05233).

`flags`: their command-line flags as a config; `presets`: those of the published checkpoints; `names`: their tensors.
"""

from ddpm_jax.convert.openai.flags import Family, ModelSpec, model_from_flags
from ddpm_jax.convert.openai.names import QKVOrder, rules
from ddpm_jax.convert.openai.presets import PRESETS, Preset, published_model

__all__ = ["PRESETS", "Family", "ModelSpec", "Preset", "QKVOrder", "model_from_flags", "published_model", "rules"]
