"""MobileSAM's TinyViT in plain PyTorch, at inference, with the names of its checkpoints."""

from collections import OrderedDict

import torch
from parity.official import modeling
from torch import nn
from torch.nn import functional

from sam_jax.encoders.config import TinyViTConfig


def conv_norm(inputs: int, outputs: int, side: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(c=conv, bn=nn.BatchNorm2d(outputs)))


class ThreeConvs(nn.Module):
    """1x1, depthwise 3x3 and 1x1, with a GELU between: what `MBConv` and `PatchMerging` have in common."""

    def __init__(self, inputs: int, between: int, outputs: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, between)
        self.conv2 = conv_norm(between, between, 3, stride, between)
        self.conv3 = conv_norm(between, outputs)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(x)))))
        return functional.gelu(x + y) if self.residual else y


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, size * size))
        # Offsets are numbered as they are met, going through all pairs of positions.
        positions = [(row, column) for row in range(size) for column in range(size)]
        numbers: dict[tuple[int, int], int] = {}
        pairs = [(abs(a - c), abs(b - d)) for a, b in positions for c, d in positions]
        index = [numbers.setdefault(pair, len(numbers)) for pair in pairs]
        self.index = torch.tensor(index).reshape(size * size, size * size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows, tokens, width = x.shape
        per_head = self.qkv(self.norm(x)).reshape(windows, tokens, self.heads, -1).transpose(1, 2)
        query, key, value = per_head.chunk(3, dim=-1)
        logits = query @ key.mT / (width // self.heads) ** 0.5 + self.attention_biases[:, self.index]
        return self.proj((logits.softmax(-1) @ value).transpose(1, 2).reshape(windows, tokens, width))


class AttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, size: int, hidden: int) -> None:
        super().__init__()
        self.size = size
        self.attn = Attention(width, heads, size)
        self.local_conv = conv_norm(width, width, 3, groups=width)
        self.mlp = nn.ModuleDict(
            {"norm": nn.LayerNorm(width), "fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.local_conv(x + self.attend(x))
        tokens = self.mlp["norm"](x.permute(0, 2, 3, 1))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](tokens))).permute(0, 3, 1, 2)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Cut the windows one by one out of a map padded with zeros, and put them back."""
        (_, width, height, length), size = x.shape, self.size
        padded = functional.pad(x, (0, -length % size, 0, -height % size))
        corners = [(top, left) for top in range(0, height, size) for left in range(0, length, size)]
        windows = torch.cat([padded[:, :, top : top + size, left : left + size] for top, left in corners])
        windows = self.attn(windows.flatten(2).mT).mT.reshape(-1, width, size, size)
        out = torch.empty_like(padded)
        for (top, left), window in zip(corners, windows, strict=True):
            out[0, :, top : top + size, left : left + size] = window
        return out[:, :, :height, :length]


class TorchTinyViT(nn.Module):
    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        first, side = config.widths[0], 2 * config.stem_stride - 1
        stem = (
            conv_norm(3, first // 2, side, config.stem_stride),
            conv_norm(first // 2, first, side, config.stem_stride),
        )
        self.patch_embed = nn.ModuleDict({"seq": nn.Sequential(stem[0], nn.GELU(), stem[1])})
        self.layers = nn.ModuleList()
        for i, width in enumerate(config.widths):
            hidden = config.ratio * width
            blocks = [
                ThreeConvs(width, hidden, width, 1, residual=True)
                if i == 0
                else AttentionBlock(width, config.heads[i - 1], config.window_sizes[i - 1], hidden)
                for _ in range(config.depths[i])
            ]
            layer = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
            if i < 3:
                merged = config.widths[i + 1]
                layer["downsample"] = ThreeConvs(width, merged, merged, 2 if i < 2 else 1, residual=False)
            self.layers.append(layer)
        out = config.out_width
        self.neck = nn.Sequential(
            nn.Conv2d(config.widths[-1], out, 1, bias=False),
            modeling.common.LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            modeling.common.LayerNorm2d(out),
        )

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the embedding of a batch of images, and what each stage returned."""
        x = self.patch_embed["seq"](image)
        stages = []
        for layer in self.layers:
            for part in layer.values():
                x = part(x)
            stages.append(x)
        return self.neck(x), stages
