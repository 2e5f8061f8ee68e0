"""The published checkpoints of improved- and guided-diffusion, by the names of their files.

The flags are those that the projects' pages give for them (MIT licence); where a page names flags for sampling too,
these are among them.  Not here: the upsamplers, which see their small image enlarged bilinearly, and the classifiers.
"""

from typing import NamedTuple

from ddpm_jax.convert.openai.flags import Family, ModelSpec, model_from_flags


class Preset(NamedTuple):
    """A published checkpoint: its project, flags and training data."""

    family: Family  # see `flags.model_from_flags`
    flags: str  # see `flags.model_from_flags`
    trained_on: str  # which images, by which loss


_IMAGENET = "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True"
_CIFAR = "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3"
_COSINE = "--diffusion_steps 4000 --noise_schedule cosine"
_UNSCALED = "--rescale_learned_sigmas False --rescale_timesteps False"
_BEDROOM = (
    "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True --use_scale_shift_norm "
    f"False --attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear {_UNSCALED}"
)
_ADM = (
    "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown True --use_fp16 True "
    "--use_scale_shift_norm True --timestep_respacing 250"
)
_WIDE = f"{_ADM} --noise_schedule linear --num_channels 256 --num_res_blocks 2"
_ADM_256 = f"{_WIDE} --image_size 256 --num_head_channels 64"
_LSUN = f"{_ADM_256} --timestep_respacing 1000"

PRESETS: dict[str, Preset] = {
    "cifar10_uncond_50M_500K": Preset("improved", f"{_CIFAR} {_COSINE}", "CIFAR-10, L_hybrid"),
    "cifar10_uncond_vlb_50M_500K": Preset("improved", f"{_CIFAR} {_COSINE} --use_kl True", "CIFAR-10, L_vlb"),
    "imagenet64_uncond_100M_1500K": Preset("improved", f"{_IMAGENET} {_COSINE}", "ImageNet 64x64, L_hybrid"),
    "imagenet64_uncond_vlb_100M_1500K": Preset(
        "improved", f"{_IMAGENET} {_COSINE} --use_kl True", "ImageNet 64x64, L_vlb"
    ),
    "imagenet64_cond_270M_250K": Preset(
        "improved",
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True "
        f"{_COSINE} {_UNSCALED} --lr 3e-4 --batch_size 2048",
        "ImageNet 64x64 with labels, L_hybrid",
    ),
    "lsun_uncond_100M_1200K_bs128": Preset("improved", _BEDROOM, "LSUN bedroom, L_hybrid"),
    "lsun_uncond_100M_2400K_bs64": Preset("improved", f"{_BEDROOM} --lr 2e-5", "LSUN bedroom, L_hybrid"),
    "64x64_diffusion": Preset(
        "guided",
        f"{_ADM} --class_cond True --dropout 0.1 --image_size 64 --noise_schedule cosine --num_channels 192 "
        "--num_head_channels 64 --num_res_blocks 3 --use_new_attention_order True",
        "ImageNet 64x64 with labels",
    ),
    "128x128_diffusion": Preset(
        "guided", f"{_WIDE} --class_cond True --image_size 128 --num_heads 4", "ImageNet 128x128 with labels"
    ),
    "256x256_diffusion": Preset("guided", f"{_ADM_256} --class_cond True", "ImageNet 256x256 with labels"),
    "256x256_diffusion_uncond": Preset("guided", f"{_ADM_256} --class_cond False", "ImageNet 256x256"),
    "512x512_diffusion": Preset(
        "guided", f"{_ADM_256} --class_cond True --image_size 512", "ImageNet 512x512 with labels"
    ),
    "lsun_bedroom": Preset("guided", f"{_LSUN} --dropout 0.1", "LSUN bedroom"),
    "lsun_cat": Preset("guided", f"{_LSUN} --dropout 0.1", "LSUN cat"),
    "lsun_horse": Preset("guided", f"{_LSUN} --dropout 0.1", "LSUN horse"),
    "lsun_horse_nodropout": Preset("guided", f"{_LSUN} --dropout 0.0", "LSUN horse, no dropout"),
}  # fmt: skip


def published_model(name: str) -> ModelSpec:
    """The model of a published checkpoint, by its file's name without .pt; a ValueError lists the known names."""
    if name not in PRESETS:
        raise ValueError(f"no published checkpoint {name!r}; there are: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return model_from_flags(preset.family, preset.flags)
