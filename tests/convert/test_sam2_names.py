"""Whole checkpoints of SAM 2, by their names and shapes: every tensor is the decoder's, the encoder's, or for video."""

import dataclasses

import numpy as np
import pytest
from random_model import SAM2
from sam2_names import FAMILIES, LISTS, SIZES, checkpoint

from sam_jax.config import SamConfig
from sam_jax.convert.state_dict import from_torch, identify
from sam_jax.convert.tables.gaps import Gaps
from sam_jax.convert.tables.names import is_video
from sam_jax.errors import CheckpointError

META = [f"{family} {size}" for family in FAMILIES for size in SIZES]
HF = [f"Sam2Model {size}" for size in SIZES]
VIDEO_HF = "Sam2VideoModel tiny"
EMPTY_MEMORY = {"meta": "no_mem_embed", "hf": "no_memory_embedding"}


def test_the_lists_are_whole():
    """The numbers of tensors of the released files."""
    counts = [len(LISTS[name]) for name in (*META, *HF, VIDEO_HF)]
    assert counts == [468, 516, 612, 900, 471, 519, 615, 903, 309, 357, 453, 741, 469]
    assert len(LISTS) == len(counts)


@pytest.mark.parametrize("name", LISTS)
def test_every_tensor_is_known(name):
    found = identify(checkpoint(name))
    naming, family = ("meta", name.split()[0]) if name in META else ("hf", "sam2.1" if name == VIDEO_HF else "sam2")
    assert (found.family.name, found.naming, found.config) == (family, naming, SamConfig(**SAM2))
    assert found.gaps == Gaps()
    # Meta's 131 + 17 + 1. Hugging Face has one table of labels for four, and the Gaussian matrix twice.
    assert len(found.sources) == {"meta": 149, "hf": 147}[naming]
    video = {tensor for tensor in found.ignored if is_video(tensor)}
    assert len(video) == {"sam2": 157, "sam2.1": 160, "Sam2Model": 0, "Sam2VideoModel": 160}[name.split()[0]]
    encoder = ("image_encoder.", "vision_encoder.")
    assert all(tensor.startswith(encoder) for tensor in found.ignored if tensor not in video)


@pytest.mark.parametrize("size", SIZES)
def test_the_version_is_told_by_one_tensor(size):
    tensors = checkpoint(f"sam2.1 {size}")
    del tensors["no_obj_embed_spatial"]
    assert identify(tensors).family.name == "sam2"


@pytest.mark.parametrize("name", ["sam2.1 tiny", "Sam2Model tiny", VIDEO_HF])
@pytest.mark.parametrize(
    "stranger",
    [
        "memory_bank.weight",
        "memory_attention",
        "memory_encoders.out_proj.weight",
        "maskmem_tpos_enc_2",
        "no_mem_pos_enc.weight",
        "no_obj_ptrs",
        "mask_downsampler.weight",
        "obj_ptr_projection.weight",
        "object_pointer.weight",
        "no_memory_encoding",
        "neck.convs.0.weight",
        "mask_decoder.conv_s2.weight",
    ],
)
def test_a_name_that_is_only_like_those_for_video_is_an_error(name, stranger):
    found = identify(checkpoint(name) | {stranger: np.zeros((2, 3), np.float32)})
    assert found.gaps == Gaps(unexpected=(f"{stranger} (2, 3)",))


@pytest.mark.parametrize("name", ["sam2 tiny", "sam2.1 large", "Sam2Model tiny", VIDEO_HF])
def test_the_embedding_of_no_memory_is_not_for_video(name):
    """It is added to every image embedding, and its name is close to those of tensors that are left out."""
    tensors = checkpoint(name)
    naming = identify(tensors).naming
    del tensors[EMPTY_MEMORY[naming]]
    missing = f"{EMPTY_MEMORY[naming]} (1, 1, 256)"
    assert identify(tensors).gaps == Gaps(missing=(missing,))
    with pytest.raises(CheckpointError, match=r"1 missing:\n  no_mem"):
        from_torch(tensors)


def test_every_tensor_of_the_decoder_is_missed():
    tensors = checkpoint("sam2.1 tiny")
    tensors = {name: tensors[name] for name in identify(tensors).sources.values()}
    for name in tensors:
        gaps = identify({other: tensor for other, tensor in tensors.items() if other != name}).gaps
        assert len(gaps.missing) == 1, name
        assert dataclasses.replace(gaps, missing=()) == Gaps(), name


@pytest.mark.parametrize("wrapper", ["model.", "module.", "state_dict.model.", "net.sam2."])
def test_the_same_below_a_prefix(wrapper):
    """SAM 2's own files have everything below `model`."""
    found = identify({wrapper + name: tensor for name, tensor in checkpoint("sam2.1 tiny").items()})
    assert (found.family.name, found.gaps) == ("sam2.1", Gaps())
    assert sum(map(is_video, found.ignored)) == 160
