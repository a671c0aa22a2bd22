"""What `sam-jax inspect` says of SAM's relatives, and of files in which something is missing."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_model import FAMILIES as SETTINGS
from sam2_names import FAMILIES, LISTS, SIZES

from sam_jax.commands.inspect import Inspection, inspect
from sam_jax.config import TINY, SamConfig
from sam_jax.convert.encoders import TABLES
from sam_jax.convert.tables.names import official
from sam_jax.convert.tables.rules import torch_shapes
from sam_jax.encoders.config import (
    EFFICIENT_SAM_S,
    EFFICIENT_SAM_TI,
    HIERA_LARGE,
    SLIM_SAM_50,
    SLIM_SAM_77,
    TINY_VIT,
    VIT_B,
    VIT_L,
    kind_of,
    title_of,
)
from sam_jax.encoders.config import SIZES as SIZES_OF_ENCODERS

SPATIAL = "no_obj_embed_spatial"


def look(path: Path, shapes: Mapping[str, Any], **options: Any) -> Inspection:
    """Inspect a `.safetensors` file of these names and shapes, with a hole for the numbers."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(np.uint64(len(text)).tobytes() + text)
        file.truncate(8 + len(text) + end)
    return inspect(path, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.safetensors"


def shapes_of(family: str, **changes: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small decoder, as its files have them."""
    config = dataclasses.replace(TINY, **SETTINGS[family] | changes)
    shapes = torch_shapes(config)
    return {official(name, "meta"): shape for name, shape in shapes.items()} if config.object_score else shapes


VIDEO = {"sam2": "157: 7,505,265 float32", "sam2.1": "160: 7,521,777 float32"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_sam2(family, size, path):
    """Family, size, version, and that nothing but the encoder is left out beside what is for video."""
    shapes = LISTS[f"{family} {size}"]
    found = look(path, shapes)
    rows = dict(found.rows)
    assert found.problem is None
    assert rows["family"] == {"sam2": "SAM 2 (sam2)", "sam2.1": "SAM 2.1 (sam2.1)"}[family]
    assert rows["size"] == size
    assert rows["version"] == {"sam2": "2.0", "sam2.1": "2.1"}[family]
    assert rows["names"] == "Meta's"
    assert rows["decoder"] == "149: 4,221,841 float32"
    assert rows["for video only"] == VIDEO[family]
    assert rows["tensors"].startswith(f"{len(shapes)}: ")


@pytest.mark.parametrize("size", SIZES)
def test_sam2_by_hugging_face(size, path):
    """Without tensors for video, nothing tells the version."""
    rows = dict(look(path, LISTS[f"Sam2Model {size}"]).rows)
    assert (rows["family"], rows["size"], rows["names"]) == ("SAM 2 (sam2)", size, "Hugging Face's")
    assert rows["version"] == "2.0 or 2.1: only tensors for video would tell"
    assert "for video only" not in rows


def test_a_video_model_by_hugging_face(path):
    rows = dict(look(path, LISTS["Sam2VideoModel tiny"]).rows)
    assert (rows["family"], rows["size"], rows["version"]) == ("SAM 2.1 (sam2.1)", "tiny", "2.1")
    assert rows["for video only"] == VIDEO["sam2.1"]


def test_an_encoder_of_another_size_has_no_name(path):
    shapes = {name: shape for name, shape in LISTS["sam2 tiny"].items() if ".blocks.11." not in name}
    rows = dict(look(path, shapes).rows)
    assert rows["family"] == "SAM 2 (sam2)"
    assert "size" not in rows


def test_a_family_that_is_asked_for(path):
    """MedSAM2's files look like SAM 2's of the same size; its version is not told by SAM 2's rule."""
    rows = dict(look(path, LISTS["sam2.1 tiny"], family="medsam2").rows)
    assert (rows["family"], rows["size"]) == ("MedSAM2 (medsam2)", "tiny")
    assert "version" not in rows
    assert (rows["image_size"], rows["grid_size"]) == ("512 x 512", "32 x 32")


def test_the_file_says_that_medsam2_has_such_files_too(path):
    notes = [text for label, text in look(path, LISTS["sam2.1 tiny"]).rows if label == "note"]
    assert notes == ["Files of medsam2 look like this one: say so by --family, or family= in Python."]


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("SAM-HQ (sam_hq)", shapes_of("sam_hq")),
        ("HQ-SAM 2 (hq_sam2)", shapes_of("hq_sam2") | {SPATIAL: (1, 64)}),
        ("EfficientTAM (efficient_tam)", shapes_of("sam2", high_resolution=False) | {SPATIAL: (1, 64)}),
        ("EdgeTAM (edge_tam)", shapes_of("sam2") | {"spatial_perceiver.latents": (256, 64)}),
        ("SAM 3's tracker (sam3_tracker)", {f"tracker.{name}": shape for name, shape in shapes_of("sam2").items()}),
    ],
)
def test_relatives(family, shapes, path):
    if "sam3" in family:  # whose layers have SAM's names
        shapes = {
            name.replace("mlp.layers.0", "mlp.lin1").replace("mlp.layers.1", "mlp.lin2"): shape
            for name, shape in shapes.items()
        }
    found = look(path, shapes)
    rows = dict(found.rows)
    assert (rows["family"], found.problem) == (family, None)
    assert not {"size", "version"} & rows.keys()
    video = [name for name in shapes if name.startswith((SPATIAL, "spatial"))]
    assert rows.get("for video only", "0:").partition(":")[0] == str(len(video))
    assert rows["ignored"] == "none"
    assert rows["hq"] == str("HQ" in family)
    assert rows["high_resolution"] == str("SAM 2" in family or "EdgeTAM" in family or "SAM 3" in family)


EFFICIENT_SAM = SamConfig(**SETTINGS["efficient_sam"])
WHOLE = {
    "Segment Anything, ViT-L (sam_vit_l)": [(SamConfig(), VIT_L, "ViT-L")],
    "SAM-HQ (sam_hq)": [
        (SamConfig(hq=True, early_width=768), VIT_B, "ViT-B"),
        (SamConfig(hq=True, early_width=160), TINY_VIT, None),
    ],
    "HQ-SAM 2 (hq_sam2)": [(SamConfig(**SETTINGS["hq_sam2"]), HIERA_LARGE, "large")],
    "MobileSAM (mobile_sam)": [(SamConfig(), TINY_VIT, None)],
    "SlimSAM (slim_sam)": [(SamConfig(), SLIM_SAM_50, "50 % pruned"), (SamConfig(), SLIM_SAM_77, "77 % pruned")],
    "EfficientSAM (efficient_sam)": [(EFFICIENT_SAM, EFFICIENT_SAM_TI, "Ti"), (EFFICIENT_SAM, EFFICIENT_SAM_S, "S")],
    "EfficientViT-SAM (efficientvit_sam)": [
        (SamConfig(), SIZES_OF_ENCODERS[size], size) for size in ("l0", "l1", "l2", "xl0", "xl1")
    ],
}
"""Decoders and encoders of published checkpoints; TinyViT has one size."""


@pytest.mark.parametrize(
    ("family", "decoder", "encoder", "size"), [(family, *one) for family, several in WHOLE.items() for one in several]
)
def test_whole_checkpoints(family, decoder, encoder, size, path):
    shapes = torch_shapes(decoder) | torch_shapes(encoder, "meta", TABLES[kind_of(encoder)])
    if decoder.object_score:
        shapes = {official(name, "meta"): shape for name, shape in shapes.items()}
    found = look(path, shapes)
    rows = dict(found.rows)
    assert (rows["family"], rows.get("size"), found.problem) == (family, size, None)
    assert rows["image encoder"].startswith(f"{title_of(encoder)} of ")
    assert rows["ignored"] == "none"
    assert not {"version", "for video only"} & rows.keys()


def test_an_encoder_that_is_not_whole_has_a_size(path):
    shapes = {n: s for n, s in LISTS["sam2.1 tiny"].items() if n != "image_encoder.trunk.blocks.3.norm1.bias"}
    rows = dict(look(path, shapes).rows)
    assert rows["size"] == "tiny"
    assert rows["image encoder"] == ("It is not whole.\n1 missing:\n  image_encoder.trunk.blocks.3.norm1.bias (192,)")


def test_what_is_missing(path):
    """A file whose decoder is not whole: everything that is known, and what it lacks."""
    lost = ("no_mem_embed", "sam_mask_decoder.conv_s0.bias", "sam_prompt_encoder.no_mask_embed.weight")
    shapes = {name: shape for name, shape in LISTS["sam2.1 small"].items() if name not in lost}
    found = look(path, shapes | {"memory_bank.weight": (2, 3)})
    rows = dict(found.rows)
    assert (rows["family"], rows["size"], rows["version"]) == ("SAM 2.1 (sam2.1)", "small", "2.1")
    assert rows["for video only"] == VIDEO["sam2.1"]
    assert found.problem == (
        "The decoder is not whole.\n"
        "3 missing:\n"
        "  prompt_encoder.no_mask_embed.weight (1, 256)\n"
        "  no_mem_embed (1, 1, 256)\n"
        "  mask_decoder.conv_s0.bias (32,)\n"
        "1 unexpected:\n"
        "  memory_bank.weight (2, 3)"
    )
