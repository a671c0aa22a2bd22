"""EfficientViT-SAM's official package, which is called `efficientsam` and needs torchvision."""

import torch
from parity.stand_ins import import_package

from sam_jax.encoders.config import EfficientViTConfig
from sam_jax.encoders.efficient_vit import NORM_EPS

efficientsam = import_package("efficientsam.sam_model_zoo")
sam = import_package("efficientsam.models.efficientvit.sam")
backbone = import_package("efficientsam.models.efficientvit.backbone")
norm = import_package("efficientsam.models.nn.norm")


def official_efficient_vit(config: EfficientViTConfig) -> torch.nn.Module:
    """Return an official encoder of these settings, also of sizes that the package has no name for."""
    attention = {3: "att@3", 5: "att"}[config.neighbourhood]
    names = {"fused": "fmb", "inverted": "mb", "attention": attention}
    trunk = backbone.EfficientViTLargeBackbone(
        width_list=list(config.widths),
        depth_list=list(config.depths),
        block_list=["res", *(names[kind] for kind in config.kinds)],
        expand_list=[1, *config.ratios],
        fewer_norm_list=[False, *(kind != "fused" for kind in config.kinds)],
        qkv_dim=config.head_width,
    )
    last = len(config.widths) - 1
    neck = sam.SamNeck(
        fid_list=[f"stage{last - i}" for i in range(3)],
        in_channel_list=[config.widths[last - i] for i in range(3)],
        head_width=config.neck_width,
        head_depth=config.neck_depth,
        expand_ratio=config.neck_ratio,
        middle_op="fmb",
        out_dim=config.out_width,
    )
    for layer in neck.input_ops:
        layer.op_list[1].size = list(config.grid_size)
    encoder = sam.EfficientViTSamImageEncoder(trunk, neck)
    encoder.norm = norm.build_norm("ln2d", config.out_width)
    norm.set_norm_eps(encoder, NORM_EPS)
    return encoder.eval().requires_grad_(False)
