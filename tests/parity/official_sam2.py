"""SAM 2's whole model in PyTorch, small and with random weights, and its predictor."""

from typing import Any

import torch
from parity.official import randomise_norms
from parity.stand_ins import import_package

from sam_jax.encoders.config import HieraConfig

hydra = import_package("hydra")
sam2_predictor = import_package("sam2.sam2_image_predictor")


def random_sam2(config: HieraConfig, seed: int = 0) -> Any:
    """Return SAM 2.1's model with an encoder of these settings and its own decoder, with mild weights: PyTorch's own
    initialisation, norms and positions random.
    """
    trunk = "++model.image_encoder.trunk"
    overrides = [
        f"++model.image_size={config.image_size[0]}",
        f"{trunk}.embed_dim={config.widths[0]}",
        f"{trunk}.num_heads={config.heads[0]}",
        f"{trunk}.stages={list(config.depths)}",
        f"{trunk}.global_att_blocks={list(config.global_blocks)}",
        f"{trunk}.window_spec={list(config.window_sizes)}",
        f"{trunk}.window_pos_embed_bkg_spatial_size={list(config.position_size)}",
        f"++model.image_encoder.neck.backbone_channel_list={list(reversed(config.widths))}",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
    ]
    torch.manual_seed(seed)
    settings = hydra.compose("configs/sam2.1/sam2.1_hiera_t.yaml", overrides)
    model = hydra.utils.instantiate(settings.model, _recursive_=True).eval().requires_grad_(False)
    randomise_norms(model)
    positions = model.image_encoder.trunk.pos_embed, model.image_encoder.trunk.pos_embed_window, model.no_mem_embed
    for position in positions:
        position.normal_(std=0.3)
    return model
