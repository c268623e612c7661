"""Small models, data and the published fixtures for tests."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aim_lightning.data.tokens.format.manifest import TokenManifest, TokenShard
from aim_lightning.data.tokens.format.record_format import write_shard
from aim_lightning.models import AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from named_weights import aim_weight, vq_weight  # noqa: E402

_SIZES = {"d_model": 32, "n_layer": 2, "vocab_size": 16, "num_classes": 3, "num_tokens": 4}
TINY = AiMConfig(**_SIZES, adaln="group", num_groups=2, d_state=8, headdim=16)
_CHANNELS = {"base_channels": 8, "channel_multipliers": (1, 1), "z_channels": 8, "norm_groups": 4}
TINY_VQ = VQConfig(image_size=16, codebook_size=16, num_res_blocks=1, usage_window=64, **_CHANNELS)


def skip_without(program: str) -> None:
    """Skip a test on a machine without the program; CI (AIM_CI) fails instead."""
    if not shutil.which(program) and "AIM_CI" not in os.environ:
        pytest.skip(f"needs {program}")


def free_port() -> int:
    """Return a TCP port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_program(path: Path, text: str, interpreter: str = "/bin/sh") -> Path:
    """Write an executable script and return its path."""
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return path


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until the condition is true; fail after N seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_user_error(match: str, function: Callable, *arguments, **options) -> UserError:
    """Assert that the call raises a UserError of one line that matches `match`, and return the error."""
    with pytest.raises(UserError, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def assert_contains(text: str, parts: list[str]) -> None:
    """Assert that the text contains every part."""
    assert all(part in text for part in parts), text


def random_weights(module: torch.nn.Module, std: float = 0.3, vectors: bool = False) -> torch.nn.Module:
    """Replace all matrices, or all parameters, by normal random values, and return the module."""
    for parameter in module.parameters():
        if vectors or parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return module


def random_aim(config: AiMConfig = TINY, std: float = 0.5, seed: int = 1, vectors: bool = False) -> AiM:
    """Return an AiM in evaluation mode, whose codes vary."""
    torch.manual_seed(seed)
    return random_weights(AiM(config).eval(), std, vectors)


def script_output(script: str, *paths: str, timeout: float = 400, **environment: str) -> dict:
    """Run a script below tests/ in another process and return the JSON object in its last line.

    Args:
        script: relative to tests/.
        *paths: directories of the checkout that it may import from.
        timeout: in seconds.
        **environment: additional variables.
    """
    tests = Path(__file__).parent
    path = ":".join(str(tests.parent / name) for name in (".", "tests", "tests/models", *paths))
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, tests / script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


def relative(value: torch.Tensor, reference: torch.Tensor, smallest: float = 0.0) -> float:
    """Return the norm of the difference over the norm of the reference, or over `smallest` where that is larger."""
    return ((value - reference).norm() / reference.norm().clamp(min=smallest)).item()


def fixture(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return (json, tensors) of a published fixture."""
    return json.loads((FIXTURES / f"{name}.json").read_text()), load_file(FIXTURES / f"{name}.safetensors")


def published_aim(name: str) -> AiM:
    """Return a fixture's network, with the weights of its parameter names."""
    options = dict(fixture(name)[0]["config"])
    options["adaln"] = "group" if options.pop("adaln_group") else "layer"
    model = AiM(AiMConfig(**options)).eval()
    names = {key: key for key in model.state_dict()} | {"lm_head.weight": "backbone.embeddings.word_embeddings.weight"}
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(aim_weight(names[key], shapes[key])) for key in names})
    return model


def published_vq8() -> VQModel:
    """Return the fixture's tokenizer: 128x128 pixels, 8x smaller grids."""
    model = VQModel(VQConfig(image_size=128, channel_multipliers=(1, 2, 2, 4))).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items() if key != "quantize.codebook_used"}
    weights = {key: torch.from_numpy(vq_weight(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(model.state_dict() | weights)
    return model


def write_random_vgg(path: Path) -> Path:
    """Write random weights of VGG16's convolutions under the names of torchvision's file; return its path."""
    import torchvision  # imports triton, which some tests must set up before

    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).features.state_dict()
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, value in shapes.items():
        fan_in = value[0].numel() if value.ndim > 1 else 10000
        weights[f"features.{name}"] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
    torch.save(weights, path)
    return path


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def write_tokens(
    directory: Path, shard_rows: list[int], *, views=1, config=TINY, tokenizer_hash="none", seed=0, source="simulated"
) -> TokenManifest:
    """Write a directory of token shards with random codes; row r has label r % classes."""
    directory.mkdir(parents=True, exist_ok=True)
    rng, side, shards, first = np.random.default_rng(seed), int(config.num_tokens**0.5), [], 0
    for number, rows in enumerate(shard_rows):
        codes = rng.integers(0, config.vocab_size, (rows, views, config.num_tokens), dtype=np.uint16)
        labels = np.arange(first, first + rows) % config.num_classes
        path = directory / f"tokens-{number:06d}.tar"
        write_shard(path, codes, labels, [f"row{first + i}" for i in range(rows)])
        shards.append(TokenShard(path.name, rows, sha256_file(path)))
        first += rows
    names = [f"class{i}" for i in range(config.num_classes)]
    manifest = TokenManifest((side, side), config.vocab_size, names, views, tokenizer_hash, source, shards)
    manifest.save(directory)
    return manifest
