"""EfficientSAM in plain PyTorch, at inference, with the names of its checkpoints: no package has its code.

Written from what `efficient_sam/` of `yformer/EfficientSAM` does: `efficient_sam_encoder.py`, `efficient_sam.py`,
`efficient_sam_decoder.py`, `two_way_transformer.py` and `mlp.py`.
"""

from typing import Any

import torch
from parity.official import modeling
from torch import nn
from torch.nn import functional

from sam_jax.config import SamConfig
from sam_jax.encoders.config import ViTConfig

SLOTS = 6


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(n, 3, self.heads, -1).permute(1, 2, 0, 3)
        gathered = functional.scaled_dot_product_attention(*qkv).transpose(0, 1).reshape(n, width)
        x = x + self.attn["proj"](gathered)
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class TorchViT(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, patch, out = config.width, config.patch_size, config.out_width
        self.grid, self.side = config.grid_size, config.position_side
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.side**2, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, config.heads) for _ in range(config.depth)))
        self.neck = nn.Sequential(
            nn.Conv2d(width, out, 1, bias=False),
            modeling.common.LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            modeling.common.LayerNorm2d(out),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the embedding of one image, channels first."""
        stored = self.pos_embed[:, 1:].reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        position = functional.interpolate(stored, self.grid, mode="bicubic", align_corners=False)
        x = self.patch_embed["proj"](image[None]) + position
        tokens = self.blocks(x[0].flatten(1).T)
        return self.neck(tokens.T.reshape(x.shape))[0]


class Attention(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Layers with a GELU behind each but the last."""

    def __init__(self, inputs: int, *widths: int) -> None:
        super().__init__()
        sizes = (inputs, *widths)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(i, o), nn.GELU()) for i, o in zip(sizes, widths[:-1], strict=False)
        )
        self.fc = nn.Linear(*sizes[-2:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.fc(x)


class TwoWayBlock(nn.Module):
    def __init__(self, config: SamConfig, first: bool) -> None:
        super().__init__()
        width, inner, heads = config.width, config.width // config.attention_downsample, config.heads
        self.first = first
        self.self_attn = Attention(width, width, heads)
        self.cross_attn_token_to_image = Attention(width, inner, heads)
        self.cross_attn_image_to_token = Attention(width, inner, heads)
        self.mlp = Mlp(width, config.mlp_width, width)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, query_pe: torch.Tensor, key_pe: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.first:
            queries = queries + query_pe
        queries = self.norm1(queries + self.self_attn(queries, queries, queries))
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries))
        return queries, keys


class Transformer(nn.Module):
    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        width = config.width
        self.layers = nn.ModuleList(TwoWayBlock(config, first=i == 0) for i in range(config.depth))
        self.final_attn_token_to_image = Attention(width, width // config.attention_downsample, config.heads)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, image_pe: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe)
        gathered = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + gathered), keys


class TorchEfficientSam(nn.Module):
    """The whole model; without settings of an encoder, the decoder alone."""

    def __init__(self, config: SamConfig, encoder: ViTConfig | None = None) -> None:
        super().__init__()
        width, masks = config.width, config.num_masks
        self.config, self.slots = config, SLOTS
        if encoder:
            self.image_encoder = TorchViT(encoder)
        names = ("invalid_points", "point_embeddings", "bbox_top_left_embeddings", "bbox_bottom_right_embeddings")
        self.prompt_encoder = nn.ModuleDict({name: nn.Embedding(1, width) for name in names})
        self.prompt_encoder["pe_layer"] = nn.Module()
        self.prompt_encoder["pe_layer"].register_buffer(
            "positional_encoding_gaussian_matrix", torch.randn(2, width // 2)
        )
        first = nn.Sequential(nn.ConvTranspose2d(width, width // 4, 2, 2), nn.GroupNorm(1, width // 4), nn.GELU())
        second = nn.Sequential(nn.ConvTranspose2d(width // 4, width // 8, 2, 2), nn.GELU())
        self.mask_decoder = nn.ModuleDict(
            {
                "transformer": Transformer(config),
                "iou_token": nn.Embedding(1, width),
                "mask_tokens": nn.Embedding(masks, width),
                "final_output_upscaling_layers": nn.Sequential(first, second),
                "output_hypernetworks_mlps": nn.ModuleList(Mlp(width, width, width, width // 8) for _ in range(masks)),
                "iou_prediction_head": Mlp(width, *[config.iou_head_width] * (config.iou_head_depth - 1), masks),
            }
        )

    def fourier(self, places: torch.Tensor) -> torch.Tensor:
        """Return the features of places (x, y), given as fractions of the frame."""
        matrix = self.prompt_encoder["pe_layer"].positional_encoding_gaussian_matrix
        phases = 2 * torch.pi * ((2 * places - 1).to(matrix) @ matrix)
        return torch.cat([phases.sin(), phases.cos()], -1)

    def grid(self, h: int, w: int) -> torch.Tensor:
        """Return the features of the centres of a grid's cells."""
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        return self.fourier(torch.stack([x, y], -1))

    def tokens(self, points: torch.Tensor, labels: torch.Tensor, original_size: tuple[int, int]) -> torch.Tensor:
        """Return the six prompt tokens of points [set, n, 2] in pixels of the original image."""
        height, width = self.config.image_size
        scale = torch.tensor([width / original_size[1], height / original_size[0]])
        points = torch.where(points >= 0, points * scale, -1.0)[:, : self.slots]
        labels = labels[:, : self.slots]
        more = self.slots - points.shape[1]
        points = functional.pad(points, (0, 0, 0, more), value=-1.0)
        labels = functional.pad(labels, (0, more), value=-1)
        tokens = self.fourier((points + 0.5) / torch.tensor([width, height]))
        names = {-1: "invalid_points", 1: "point_embeddings"}
        names |= {2: "bbox_top_left_embeddings", 3: "bbox_bottom_right_embeddings"}
        for label, name in names.items():
            tokens = tokens + self.prompt_encoder[name].weight[0] * (labels == label)[..., None]
        return tokens

    def forward(
        self, embedding: torch.Tensor, points: Any, labels: Any, original_size: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits and scores of all masks, of one image's embedding [c, h, w] and prompt sets as points."""
        decoder, (c, h, w) = self.mask_decoder, embedding.shape
        prompts = self.tokens(torch.as_tensor(points), torch.as_tensor(labels), original_size or self.config.image_size)
        outputs = torch.cat([decoder["iou_token"].weight, decoder["mask_tokens"].weight])
        sets = len(prompts)
        tokens = torch.cat([outputs.expand(sets, -1, -1), prompts], 1)
        image = embedding.flatten(1).T.expand(sets, -1, -1)
        tokens, keys = decoder["transformer"](tokens, image, self.grid(h, w).reshape(1, h * w, c))
        upscaled = decoder["final_output_upscaling_layers"](keys.mT.reshape(sets, c, h, w))
        weights = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder["output_hypernetworks_mlps"])]
        logits = torch.einsum("smd,sdyx->smyx", torch.stack(weights, 1), upscaled)
        return logits, decoder["iou_prediction_head"](tokens[:, 0])

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """Return the encoder's frame of 8-bit pixels [3, height, width]."""
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = image[None].float() / 255
        if pixels.shape[2:] != self.config.image_size:
            pixels = functional.interpolate(pixels, self.config.image_size, mode="bilinear", align_corners=False)
        return (pixels[0] - mean[:, None, None]) / deviation[:, None, None]

    def postprocess(self, logits: torch.Tensor, original_size: tuple[int, int]) -> torch.Tensor:
        """Return logits at the original size; a pixel is in the mask from 0 on."""
        return functional.interpolate(logits, original_size, mode="bicubic", align_corners=False)
