"""From a checkpoint to images: load a network, request conditions, draw, edit, record and verify."""

from ddpm_jax.pipeline.edits import Edit, edit_from_manifest, make_edit
from ddpm_jax.pipeline.manifest import read_manifest
from ddpm_jax.pipeline.pipeline import Pipeline
from ddpm_jax.pipeline.requests import ConditionRequest, parse_request, request_from_manifest
from ddpm_jax.pipeline.user_images import image_hash

__all__ = [
    "ConditionRequest", "Edit", "Pipeline", "edit_from_manifest", "image_hash", "make_edit", "parse_request",
    "read_manifest", "request_from_manifest",
]  # fmt: skip
