"""State dicts of the official classes and of Hugging Face's: converted, converted back, and loaded again."""

import dataclasses
import types

import numpy as np
import pytest
import torch
import transformers
from parity.official import OfficialDecoder, modeling, random_decoder, randomise_norms
from safetensors.numpy import load_file, save_file

from sam_jax.batch.predict import predict_masks
from sam_jax.config import TINY, SamConfig
from sam_jax.convert import from_torch, identify, open_checkpoint, to_torch
from sam_jax.decoder.model import Sam
from sam_jax.errors import CheckpointError
from sam_jax.prompts import Prompts

CONFIGS = {
    "full": SamConfig(),
    "tiny": TINY,
    "nine masks": dataclasses.replace(TINY, multimask_outputs=8),
    "deep": dataclasses.replace(TINY, depth=3, iou_head_depth=4),
}


def assert_same_bits(one, other) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name


def as_torch(arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def on_meta_device(build) -> dict[str, torch.Tensor]:
    """Names, shapes and dtypes of a model of any size, without its numbers."""
    with torch.device("meta"):
        state_dict = build().state_dict()
    return {
        name: types.SimpleNamespace(shape=tuple(tensor.shape), dtype=np.dtype(str(tensor.dtype).removeprefix("torch.")))
        for name, tensor in state_dict.items()
    }


def hf_config(config: SamConfig) -> transformers.SamConfig:
    """Hugging Face's settings of the same decoder with a telling epsilon, and a vision encoder as small as can be."""
    image = {"image_size": config.image_size[0], "patch_size": config.image_size[0] // config.grid_size[0]}
    return transformers.SamConfig(
        vision_config=image
        | {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "mlp_dim": 8,
            "global_attn_indexes": [0],
            "output_channels": config.width,
            "num_pos_feats": config.width // 2,
        },
        prompt_encoder_config=image | {"hidden_size": config.width, "mask_input_channels": config.mask_channels},
        mask_decoder_config={
            "hidden_size": config.width,
            "mlp_dim": config.mlp_width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "num_multimask_outputs": config.multimask_outputs,
            "iou_head_depth": config.iou_head_depth,
            "iou_head_hidden_dim": config.iou_head_width,
            "layer_norm_eps": 1e-3,
        },
    )


@pytest.fixture(scope="module")
def hf_model() -> transformers.SamModel:
    torch.manual_seed(0)
    model = transformers.SamModel(hf_config(TINY)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5)
    randomise_norms(model)
    model.shared_image_embedding.positional_embedding.normal_()
    return model


@pytest.fixture(scope="module")
def hf_folder(hf_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    hf_model.save_pretrained(folder)
    return folder


def decoder_of(tensors) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("vision_encoder.")}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_official_state_dicts_survive_the_way_there_and_back(config):
    official = random_decoder(config)
    converted = from_torch(official.tensors())
    back = to_torch(Sam(converted.config), converted.variables)
    assert_same_bits(back, official.tensors())
    OfficialDecoder(config).load_state_dict(as_torch(back), strict=True)
    frame = {"heads": 8, "image_size": (1024, 1024), "grid_size": (64, 64)}
    assert converted.config == dataclasses.replace(config, **frame)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_official_weights_of_other_dtypes_come_from_files(dtype, tmp_path):
    official = random_decoder(TINY).to(dtype)
    torch.save(official.state_dict(), tmp_path / "sam.pth")
    converted = from_torch(open_checkpoint(tmp_path / "sam.pth").tensors)
    back = to_torch(Sam(converted.config), converted.variables)
    assert back.keys() == official.state_dict().keys()
    for name, tensor in official.state_dict().items():
        assert back[name].tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_a_whole_official_model_is_found_in_a_training_file(tmp_path):
    decoder = random_decoder(TINY)
    encoder = modeling.ImageEncoderViT(img_size=96, patch_size=16, embed_dim=8, depth=1, num_heads=2, out_chans=32)
    sam = torch.nn.DataParallel(modeling.Sam(encoder, decoder.prompt_encoder, decoder.mask_decoder))
    optimizer = torch.optim.AdamW(encoder.parameters())
    encoder(torch.zeros(1, 3, 96, 96)).sum().backward()
    optimizer.step()
    contents = {"model": sam.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(contents, tmp_path / "model_best.pth")
    converted = from_torch(open_checkpoint(tmp_path / "model_best.pth").tensors)
    assert_same_bits(to_torch(Sam(converted.config), converted.variables), decoder.tensors())
    assert (converted.config.image_size, converted.config.grid_size) == ((96, 96), (6, 6))
    siblings = [name for name in converted.ignored if name.startswith("optimizer.")]
    assert len(siblings) == 3 * len(list(encoder.parameters()))
    assert len(converted.ignored) - len(siblings) == len(encoder.state_dict())


def test_mobile_sam_v2_files(tmp_path):
    decoder = random_decoder(TINY)
    parts = {"PromtEncoder": decoder.prompt_encoder.state_dict(), "MaskDecoder": decoder.mask_decoder.state_dict()}
    torch.save(parts, tmp_path / "Prompt_guided_Mask_Decoder.pt")
    converted = from_torch(open_checkpoint(tmp_path / "Prompt_guided_Mask_Decoder.pt").tensors)
    assert converted.family.name == "mobile_sam_v2"
    assert_same_bits(to_torch(Sam(converted.config), converted.variables), decoder.tensors())


def test_a_low_rank_adapter_file_with_the_decoder_beside_it(tmp_path):
    decoder = random_decoder(dataclasses.replace(TINY, multimask_outputs=8))
    adapters = {f"w_{part}_{i:03d}": torch.zeros(4, 8) for part in "ab" for i in range(4)}
    torch.save(adapters | decoder.state_dict(), tmp_path / "epoch_159.pth")
    converted = from_torch(open_checkpoint(tmp_path / "epoch_159.pth").tensors)
    assert converted.family.name == "samed"
    assert (converted.config.num_masks, converted.config.grid_size) == (9, (32, 32))
    assert converted.ignored == tuple(adapters)


def test_hugging_face_writes_the_names_that_we_write(hf_model, hf_folder):
    saved = decoder_of(load_file(hf_folder / "model.safetensors"))
    converted = from_torch(saved)
    assert_same_bits(to_torch(Sam(converted.config), converted.variables, "hf"), saved)


def test_a_hugging_face_folder_with_its_settings(hf_model, hf_folder):
    checkpoint = open_checkpoint(hf_folder)
    converted = from_torch(checkpoint.tensors, settings=checkpoint.settings)
    assert converted.config == dataclasses.replace(TINY, block_norm_eps=1e-3, final_norm_eps=1e-5)
    assert converted.family.name == "hf_sam"
    assert set(converted.ignored) == {name for name in hf_model.state_dict() if name.startswith("vision_encoder.")}


def test_both_names_of_the_gaussian_matrix_in_memory(hf_model):
    tensors = {name: tensor.numpy() for name, tensor in decoder_of(hf_model.state_dict()).items()}
    assert len(tensors) == 138
    converted = from_torch(tensors)
    back = to_torch(Sam(converted.config), converted.variables, "hf")
    del tensors["prompt_encoder.shared_embedding.positional_embedding"]
    assert_same_bits(back, tensors)


def test_hugging_face_loads_what_we_write(hf_model, hf_folder, tmp_path):
    saved = load_file(hf_folder / "model.safetensors")
    converted = from_torch(saved)
    back = to_torch(Sam(converted.config), converted.variables, "hf")
    hf_model.config.save_pretrained(tmp_path)
    save_file(saved | back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = transformers.SamModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in hf_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_published_hugging_face_architecture():
    tensors = on_meta_device(lambda: transformers.SamModel(transformers.SamConfig()))
    found = identify(tensors, settings=transformers.SamConfig().to_dict())
    assert not found.gaps
    assert found.config == SamConfig(block_norm_eps=1e-6) == identify(tensors).config


def test_weights_of_hugging_face_compute_what_they_do_there(hf_model, rng, compare):
    """Names may match while meanings do not, and an epsilon has no name at all: the masks must match."""
    tensors = {name: tensor.numpy() for name, tensor in hf_model.state_dict().items()}
    converted = from_torch(tensors, settings=hf_model.config.to_dict())
    embedding = rng(*converted.config.grid_size, converted.config.width)
    points = np.array([[[30, 40], [100, 90]], [[64, 5], [12, 99]]], np.float32)
    labels = np.array([[1, 0], [1, 1]])
    prompts = Prompts.build(points=points, labels=labels)
    ours = predict_masks(Sam(converted.config), converted.variables, embedding, prompts)
    theirs = hf_model(
        image_embeddings=torch.tensor(embedding).permute(2, 0, 1)[None],
        input_points=torch.tensor(points)[None],
        input_labels=torch.tensor(labels)[None],
        multimask_output=True,
    )
    compare(
        {"logits of Hugging Face": ours.logits[:, 1:], "IoUs of Hugging Face": ours.iou[:, 1:]},
        {"logits of Hugging Face": theirs.pred_masks[0].numpy(), "IoUs of Hugging Face": theirs.iou_scores[0].numpy()},
        1e-5,
    )


def test_low_rank_adapters_in_the_official_decoder_are_refused():
    official = random_decoder(TINY)
    projection = official.mask_decoder.transformer.layers[0].self_attn.q_proj
    projection.lora_A = torch.nn.Parameter(torch.zeros(4, 32))
    with pytest.raises(CheckpointError, match="low-rank adapters"):
        from_torch({name: tensor.detach().numpy() for name, tensor in official.state_dict().items()})
