"""DINOv2: random weights in the published format, against the same network of torch's building blocks."""

import sys

import numpy as np
import pytest
import torch
from helpers import assert_user_error
from metrics.builders import reference_of, score
from metrics.test_features import embedded_images
from PIL import Image
from torch import nn

from aim_lightning.metrics.features import DINOv2Features
from aim_lightning.metrics.features.dinov2 import resized_as_pillow
from aim_lightning.weights.download import DOWNLOADS

torch.set_num_threads(1)
SIZE = {"embed_dim": 32, "depth": 2, "num_heads": 4}


def published_shapes(embed_dim, depth):
    """Return names and shapes of Meta's file: the positions are those of 518 pixels, and the mask token is included."""
    f, four = embed_dim, 4 * embed_dim
    shapes = {"cls_token": (1, 1, f), "pos_embed": (1, 1370, f), "mask_token": (1, f)}
    shapes |= {"patch_embed.proj.weight": (f, 3, 14, 14), "patch_embed.proj.bias": (f,)}
    for i in range(depth):
        block = {"norm1.weight": (f,), "norm1.bias": (f,), "attn.qkv.weight": (3 * f, f), "attn.qkv.bias": (3 * f,)}
        block |= {"attn.proj.weight": (f, f), "attn.proj.bias": (f,), "ls1.gamma": (f,), "ls2.gamma": (f,)}
        block |= {"norm2.weight": (f,), "norm2.bias": (f,), "mlp.fc1.weight": (four, f), "mlp.fc1.bias": (four,)}
        block |= {"mlp.fc2.weight": (f, four), "mlp.fc2.bias": (f,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"norm.weight": (f,), "norm.bias": (f,)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    shapes = published_shapes(SIZE["embed_dim"], SIZE["depth"])
    state = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("weights") / "dinov2.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(weights):
    return DINOv2Features(str(weights), **SIZE).load()


def independent_features(state, images):
    """Return the class tokens: Pillow's resizing, positions by grid_sample, torch's attention."""
    pixels = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for image in images]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in pixels])).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x = nn.functional.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = torch.cat((state["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT), 1)
    # Position i of 16 is read at (i + 0.5) * 37 / 16.1 - 0.5 of 37, the published offset of 0.1 included.
    at = (torch.arange(16) + 0.5) * 2 / 16.1 - 1
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)[None]
    patches = state["pos_embed"][:, 1:].mT.unflatten(2, (37, 37))
    sampled = nn.functional.grid_sample(patches, grid, "bicubic", padding_mode="border", align_corners=False)
    x = x + torch.cat((state["pos_embed"][:, :1], sampled.flatten(2).mT), 1)
    for i in range(SIZE["depth"]):
        block = {name.removeprefix(f"blocks.{i}."): value for name, value in state.items() if f"blocks.{i}." in name}
        attention = nn.MultiheadAttention(SIZE["embed_dim"], SIZE["num_heads"], batch_first=True)
        names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
        names |= {"out_proj.weight": "proj.weight", "out_proj.bias": "proj.bias"}
        attention.load_state_dict({name: block[f"attn.{published}"] for name, published in names.items()})
        normed = nn.functional.layer_norm(x, x.shape[-1:], block["norm1.weight"], block["norm1.bias"], 1e-6)
        x = x + block["ls1.gamma"] * attention(normed, normed, normed, need_weights=False)[0]
        normed = nn.functional.layer_norm(x, x.shape[-1:], block["norm2.weight"], block["norm2.bias"], 1e-6)
        hidden = nn.functional.gelu(nn.functional.linear(normed, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + block["ls2.gamma"] * nn.functional.linear(hidden, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return nn.functional.layer_norm(x[:, 0], x.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6)


@pytest.mark.parametrize("side", [32, 300])
@torch.no_grad()
def test_it_equals_the_same_network_of_torchs_building_blocks(network, weights, side):
    images = nn.functional.interpolate(embedded_images("val", 3)[0], side, mode="nearest")
    features = network(images)
    expected = independent_features(torch.load(weights, weights_only=True), images)
    assert features.shape == (3, 32) and float(features.std()) > 0.1
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(70, 50), (256, 256), (300, 224)])
def test_pixels_are_resized_as_by_pillow(size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    for image, resized in zip(images, resized_as_pillow(images, 224), strict=True):
        by_pillow = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC))
        difference = resized.permute(1, 2, 0).numpy() - by_pillow
        # Pillow's weights have 22 bits, so that values close to a half may be rounded the other way.
        assert abs(difference).max() <= 1 and (difference != 0).mean() < 2e-3


def test_the_default_network_has_the_names_and_shapes_of_the_published_file():
    from timm.models.vision_transformer import vit_large_patch14_dinov2

    network = DINOv2Features()
    with torch.device("meta"):
        shapes = vit_large_patch14_dinov2(num_classes=0, img_size=518, **network.size).state_dict()
    expected = published_shapes(1024, 24)
    del expected["mask_token"]
    assert {name: tuple(value.shape) for name, value in shapes.items()} == expected
    assert (network.weights, network.SHA256) == (DOWNLOADS["dinov2"].path, DOWNLOADS["dinov2"].sha256)
    assert network.num_features == 1024


@pytest.mark.filterwarnings("ignore:FrechetDistance")
def test_only_the_published_weights_give_the_plain_name(network, monkeypatch):
    images, _ = embedded_images("val", 12)
    end = f"dinov2_{network.weights_hash[:8]}"
    assert set(score(network, reference_of(network, images[:6]), images[6:])) >= {f"fd_{end}", f"mind_{end}"}
    monkeypatch.setattr(DINOv2Features, "SHA256", network.weights_hash)
    assert network.name_ending == f"_{end}"  # another size
    monkeypatch.setattr(network, "size", DINOv2Features().size)
    assert (network.metric_name, network.name_ending) == ("fd_dinov2", "_dinov2")
    assert network.protocol()["size"] == "32 features, 2 blocks, 4 heads"


def test_missing_package_and_wrong_weights_are_one_line(weights, tmp_path, monkeypatch):
    assert_user_error("embed_dim is 0; it must be a whole number, 1 or more", DINOv2Features, embed_dim=0)
    assert_user_error(
        "embed_dim is 30; it must be a multiple of num_heads, 4", DINOv2Features, embed_dim=30, num_heads=4
    )
    for other in (SIZE | {"depth": 3}, SIZE | {"embed_dim": 64}):
        assert_user_error("holds other weights than this DINOv2", DINOv2Features(str(weights), **other).load)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert_user_error("holds other weights than this DINOv2", DINOv2Features(str(tmp_path / "other.pth"), **SIZE).load)
    assert_user_error("aim-lightning download dinov2", DINOv2Features(str(tmp_path / "none.pth")).load)
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    message = r"needs the package timm; run pip install 'aim-lightning\[dinov2\]'"
    assert_user_error(message, DINOv2Features(str(weights), **SIZE).load)
