"""Models of transformers as people use them, drawn at random and saved: pixels and features against transformers itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillhash.backbones import backbone_from_config, make_backbone
from distillhash.errors import DataError, ParameterError
from distillhash.texts import make_text_encoder, text_encoder_from_config

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "dog", "on", "the", "beach", "cat"]
TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
TEXT = {**SMALL, **TOKENS, "vocab_size": len(WORDS), "max_position_embeddings": 12}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()


def tiny(kind: str) -> tuple[Any, Any, int]:
    """A model, its image processor with the values of the published one, and the side of the images it takes."""
    if kind == "vit":
        processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
        return transformers.ViTModel(transformers.ViTConfig(**VISION)), processor, 32
    if kind == "dinov2":
        processor = transformers.BitImageProcessor(
            size={"shortest_edge": 40},
            crop_size={"height": 32, "width": 32},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
        return transformers.Dinov2Model(transformers.Dinov2Config(**VISION)), processor, 32
    if kind == "dinov2_with_registers":
        config = transformers.Dinov2WithRegistersConfig(**VISION, num_register_tokens=3)
        return transformers.Dinov2WithRegistersModel(config), tiny("dinov2")[1], 32
    if kind == "clip":
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=12)
        return transformers.CLIPModel(config), processor, 32
    if kind == "siglip":
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
        return (
            transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)),
            processor,
            32,
        )
    assert kind == "convnext"
    config = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    return transformers.ConvNextModel(config), transformers.ConvNextImageProcessor(), 384


def saved(folder: Path, model: Any, processor: Any) -> str:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"hf:{folder}"


def images(n: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def of_transformers(folder: Path, pixels: Any, **options: Any) -> Any:
    """What the folder's own image processor makes of images."""
    return transformers.AutoImageProcessor.from_pretrained(folder)(list(pixels), return_tensors="pt", **options)[
        "pixel_values"
    ]


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers", "clip", "siglip", "convnext"])
def test_pixels_and_features_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model, processor, size = tiny(kind)
    backbone: Any = make_backbone(saved(tmp_path, model, processor), device="cpu")
    assert backbone.image_size == size
    pixels = images(3, size)
    # A square image of that size needs no resizing; DINOv2's enlarges it and cuts the middle out.
    own = of_transformers(tmp_path, pixels, **({"do_resize": False} if "dinov2" in kind else {}))
    found = backbone.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.numpy(), own.numpy(), atol=1e-5)
    with torch.inference_mode():
        if kind in ("clip", "siglip"):
            expected = model.get_image_features(pixel_values=own)
            expected = getattr(expected, "pooler_output", expected)
        elif "dinov2" in kind:
            tokens = model(pixel_values=own).last_hidden_state
            patches = [tokens[:, token] for token in range(tokens.shape[1] - 16, tokens.shape[1])]
            expected = torch.cat([tokens[:, 0], sum(patches) / 16], dim=1)
        else:
            expected = model(pixel_values=own).pooler_output.flatten(1)
    np.testing.assert_allclose(backbone.embed(pixels), expected.numpy(), atol=1e-4)
    again = backbone_from_config(json.loads(json.dumps(backbone.config())), device="cpu")
    assert again.fingerprint == backbone.fingerprint


@pytest.mark.parametrize("kind", ["EfficientNet", "MobileViT"])
def test_odd_preprocessing_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    """EfficientNet may divide by the standard deviation twice and shift to -1..1; MobileViT takes BGR in 0..1."""
    square = {"height": 32, "width": 32}
    options = {
        "size": square,
        "crop_size": {"height": 40, "width": 40},
        "rescale_offset": True,
        "rescale_factor": 1 / 127.5,
    }
    if kind == "MobileViT":
        options = {"size": {"shortest_edge": 32}, "crop_size": square}
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options)
    backbone: Any = make_backbone(saved(tmp_path, tiny("vit")[0], processor), device="cpu")
    pixels = images(2, 32)
    found = backbone.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(found.numpy(), of_transformers(tmp_path, pixels).numpy(), atol=2e-5)
    assert backbone.image_size == 32
    again = backbone_from_config(json.loads(json.dumps(backbone.config())), device="cpu")
    assert again.fingerprint == backbone.fingerprint and again.channels == backbone.channels


def test_a_processor_inside_another(tmp_path: Path) -> None:
    """As newer versions of transformers save CLIP's."""
    model, processor, _ = tiny("clip")
    name = saved(tmp_path, model, processor)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    assert list(make_backbone(name, device="cpu").mean) == list(processor.image_mean)


def test_models_saved_before_patches_counted_keep_their_features(tmp_path: Path) -> None:
    model, processor, _ = tiny("dinov2")
    name = saved(tmp_path, model, processor)
    older = make_backbone(name, device="cpu", options={"pool": "model"})
    assert set(older.config()) == {"name", "image_size", "mean", "std"}
    again = backbone_from_config(older.config(), device="cpu")
    assert again.dim == 16 and again.fingerprint == older.fingerprint != make_backbone(name, device="cpu").fingerprint


def test_options(tmp_path: Path) -> None:
    name = saved(tmp_path, *tiny("vit")[:2])
    given = {"mean": "127", "std": [128, 64, 32], "rescale_factor": 1, "channels": "bgr", "pool": "class+mean"}
    backbone: Any = make_backbone(name, device="cpu", options=given)
    pixels = torch.from_numpy(images(1, 32)).permute(0, 3, 1, 2).float()
    expected = (pixels[:, [2, 1, 0]] - 127) / torch.tensor([128.0, 64, 32]).view(3, 1, 1)
    np.testing.assert_allclose(backbone.normalise(pixels).numpy(), expected.numpy(), atol=1e-5)
    assert backbone.dim == 32
    for wrong, message in (
        ({"mean": 0.5}, "mean and std belong together"),
        ({"mean": "a,b", "std": 1}, "must be numbers, one for each channel, got 'a,b'"),
        ({"mean": 0, "std": "1,0,1"}, "must be above 0, got"),
        ({"mean": 0, "std": -1}, "must be above 0, got"),
        ({"rescale_factor": 0}, "must be above 0, got .* and 0$"),
        ({"channels": "rgba"}, "channels must be rgb or bgr"),
        ({"pool": "max"}, r"pool must be model or class\+mean"),
        ({"colour": 1}, "has no option 'colour'; choose from mean, std"),
    ):
        with pytest.raises((ParameterError, DataError), match=message):
            make_backbone(name, device="cpu", options=wrong)
    with pytest.raises(ParameterError, match="efficientnet-lite0 has no option mean"):
        make_backbone(options={"mean": 1})


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_of_two_tower_models(kind: str, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model, processor, _ = tiny(kind)
    saved(tmp_path, model, processor)
    raw = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    frame = "<s> $A </s>" if kind == "clip" else "$A </s>"
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single=frame, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=12, **special).save_pretrained(tmp_path)
    encoder = make_text_encoder(f"hf:{tmp_path}", device="cpu")
    texts = ["a dog on the beach", "a cat", "the dog " * 20]
    numbers = {word: number for number, word in enumerate(WORDS)}
    for text, vector in zip(texts, encoder.encode(texts), strict=True):
        words = [numbers[word] for word in text.split()]
        ids = [2, *words[:10], 3] if kind == "clip" else [*words[:11], 3]
        if kind == "siglip":  # trained on padded texts, without a mask
            ids += [0] * (12 - len(ids))
        with torch.inference_mode():
            found = model.get_text_features(input_ids=torch.tensor([ids]))
        expected = getattr(found, "pooler_output", found)[0].numpy()
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    again = text_encoder_from_config(encoder.config(), device="cpu")
    np.testing.assert_array_equal(again.encode(texts), encoder.encode(texts))
    older = text_encoder_from_config({key: encoder.config()[key] for key in ("name", "fingerprint")}, device="cpu")
    assert np.array_equal(older.encode(["a cat"]), encoder.encode(["a cat"])) == (kind == "clip")
