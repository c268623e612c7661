"""Model cards of `weights export`, and `weights push` with the real client and a hub on this machine."""

import contextlib
import io
import json
import subprocess

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from conftest import python
from helpers import TINY, assert_contains
from huggingface_hub import ModelCard
from PIL import Image
from weights.makers import aim, published, run_content, vq, write_run
from weights.upload_server import COMMIT, TOKEN, UploadHub, upload_hub

from aim_lightning import AiMPipeline
from aim_lightning.models import AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.results import record
from aim_lightning.utils.grid import GAP, TILE
from aim_lightning.utils.tensor_hash import hash_tensors
from aim_lightning.weights import export_aim, export_vq, import_vq
from aim_lightning.weights.model_card import Card
from aim_lightning.weights.source import Source, read_source

NOWHERE = "http://127.0.0.1:9"


def make_run(root, **extra):
    """Write a run with averaged weights, its tokenizer, and scores of both kinds of weights."""
    averaged = dict(aim(seed=4).state_dict())
    facts = {"class_names": ["owl", "wren", "robin"], "tokenizer_hash": vq().weights_hash}
    facts |= {"data": {"rows": 1234, "fingerprint": "a" * 64}}
    facts |= {"configuration": run_content(aim())["configuration"] | {"experiment": "birds"}, **extra}
    run = write_run(root / "runs/birds/main", aim(seed=3), averaged, **facts)
    directory = RunDirectory("birds", "main", root / "runs")
    hashes = {kind: hash_tensors(aim(seed=seed).state_dict()) for kind, seed in (("raw", 3), ("ema", 4))}
    facts = {"weights": "ema", "weights_sha256": hashes["ema"], "sampling": {"cfg_scale": 2.0}}
    record(directory, "validate", 1, facts, {"fd_effnet_lite0_2k": 12.5}, "CPU")
    record(directory, "evaluate_raw", 1, {"weights_sha256": hashes["raw"]}, {"fid_2k_raw": 99.0}, "CPU")
    return run, export_vq(vq(), root / "vq")


@pytest.fixture
def exported(tmp_path, succeed):
    run, tokenizer = make_run(tmp_path)
    options = ("--samples", 2, "--license", "mit", "--datasets", "me/birds, me/more,")
    succeed("weights", "export", run, "--out", tmp_path / "out", "--tokenizer", tokenizer, *options)
    return tmp_path / "out"


def test_a_card_has_the_hub_s_metadata_and_what_the_run_records(exported):
    card = ModelCard.load(exported / "README.md")  # the Hub's own parser
    assert card.data.to_dict() == {
        "library_name": "aim_lightning",
        "license": "mit",
        "datasets": ["me/birds", "me/more"],
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["image-generation", "class-conditional", "autoregressive", "mamba2", "vector-quantization"],
    }
    facts = ["# birds", "4x4 pixels", "one of 3 classes", "2x2 codes of 16", "0 owl, 1 wren, 2 robin"]
    facts += ["1 optimizer steps, on 1,234 images; average (EMA)", "| `d_model` | 32 |", "| `parameters` | 24,088 |"]
    facts += ["| `fd_effnet_lite0_2k` | 12.5000 | validate |", "![Samples, one class per row](samples.png)"]
    assert_contains(card.text, [*facts, "cfg_scale 1.0, seed 0", 'AiMPipeline.from_pretrained("OWNER/NAME")'])
    assert "fid_2k_raw" not in card.text  # of other weights
    assert "models.aim" not in card.text  # the published code has one tokenizer, which is another
    blocks = [yaml.safe_load(block.partition("```")[0]) for block in card.text.split("```yaml\n")[1:]]
    assert blocks[0]["model"]["init_args"]["network"]["d_model"] == TINY.d_model
    assert blocks[1]["sampling"] == {"cfg_scale": 2.0} and blocks[1]["weights"] == "ema"


def test_the_grid_has_the_samples_of_the_exported_weights(exported):
    grid = Image.open(io.BytesIO((exported / "samples.png").read_bytes()))
    images = AiMPipeline.from_pretrained(exported).generate([0, 0, 1, 1, 2, 2], seed=0)
    left = grid.width - 2 * (TILE + GAP)
    pixels = np.asarray(grid.crop((left, 0, left + TILE, TILE)).resize((4, 4), Image.NEAREST))
    assert np.array_equal(pixels, images[0].permute(1, 2, 0).numpy())


def test_what_is_unknown_is_left_out(tmp_path, succeed):
    """An export of foreign weights states neither training, scores, license nor samples."""
    torch.save(published(aim(), vq()), tmp_path / "weights.pt")
    export_aim(aim(), tmp_path / "source", tokenizer=vq())
    text = succeed("weights", "export", tmp_path / "source", "--out", tmp_path / "out")
    assert "/config.json, " in text and "samples.png" not in text and "states no license" in text
    card = ModelCard.load(tmp_path / "out/README.md")
    assert "license" not in card.data.to_dict() and "datasets" not in card.data.to_dict()
    assert [line for line in card.text.splitlines() if line.startswith("#")] == ["# AiM", "## Architecture", "## Use"]
    assert str(tmp_path) not in card.text


def test_paths_of_this_machine_stay_here(tmp_path, succeed):
    configuration = run_content(aim())["configuration"]
    configuration["model"]["init_args"]["label_dropout"] = 0
    configuration |= {"experiment": "birds", "tokenizer": str(tmp_path / "vq"), "seed_everything": 0}
    configuration |= {"images": {"train": f"{tmp_path}/birds/train", "val": "data/val"}}
    configuration["data"] = {"path": "pipe:ssh me@host cat {}", "mirror": "https://me:secret@host/tokens"}
    configuration |= {"sampling": {"cfg_scale": 3.0, "top_k": 5, "pixel_compile": "auto"}}  # of an earlier version
    run, _ = make_run(tmp_path, configuration=configuration)
    succeed("weights", "export", run, "--out", tmp_path / "out", "--samples", 1)
    text = (tmp_path / "out/README.md").read_text()
    assert str(tmp_path) not in text
    assert_contains(text, ["seed_everything: 0", "train: train", "val: data/val", "mirror: https://host/tokens"])
    assert "ssh" not in text and "secret" not in text
    # Without label dropout the null class is untrained, so the samples have no guidance.
    assert "cfg_scale 1.0, top_k 5, seed 0" in text and "cfg_scale=1.0, top_k=5, seed=1" in text


def test_an_imported_run_was_not_trained_here(tmp_path, succeed):
    run, tokenizer = make_run(tmp_path, trainer={"global_step": 0, "imported_from": "weights/aim_b"})
    succeed("weights", "export", run, "--out", tmp_path / "out", "--tokenizer", tokenizer, "--samples", 0)
    text = (tmp_path / "out/README.md").read_text()
    assert "## Training" not in text and not (tmp_path / "out/samples.png").exists()


def test_a_tokenizer_has_a_card_too(tmp_path, succeed):
    run = write_run(tmp_path / "vq/main", vq())
    succeed("weights", "export", run, "--out", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.tags == ["image-tokenizer", "vector-quantization"] and card.data.pipeline_tag is None
    assert_contains(card.text, ["4x4 pixels into 2x2 codes of 16, and back", "import_vq(snapshot_download("])
    assert import_vq(tmp_path / "out").config.image_size == 4


def test_the_published_code_is_named_where_it_can_read_the_weights():
    """The published code builds VQ-16 for 256 pixels, and knows adaLN and positions only."""
    source = read_source(published(aim()))
    with torch.device("meta"):
        tokenizer = VQModel(VQConfig())
        for changes, is_named in (({}, True), ({"adaln": "none"}, False), ({"position_embedding": False}, False)):
            network = AiM(AiMConfig(d_model=64, n_layer=1, **changes))
            card = Card(Source("mapping", source.parts), network, tokenizer, sampling={"cfg_scale": 2.0, "top_k": 600})
            assert ("from models.aim import AiM" in card.text()) == is_named
            assert ("model.generate(batch=2, cfg_scale=2.0, top_k=600)" in card.text()) == is_named


@pytest.fixture
def push(tmp_path):
    """Return the function that runs `weights push` as a process, with the hub at `endpoint`."""

    def call(endpoint: str, *arguments) -> subprocess.CompletedProcess:
        settings = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
        words = ("-m", "aim_lightning", "weights", "push", *arguments)
        return python(*words, HF_ENDPOINT=endpoint, HF_TOKEN=TOKEN, **settings)

    return call


def test_push_uploads_an_export_in_one_commit(exported, push):
    (exported / "notes.txt").write_text("not for others")
    with upload_hub() as hub:
        done = push(hub.endpoint, exported, "me/birds")
    assert done.returncode == 0, done.stdout + done.stderr
    ((repository, files),) = hub.commits
    expected = {name: (exported / name).read_bytes() for name in ("config.json", "model.safetensors", "samples.png")}
    card = (exported / "README.md").read_bytes().replace(b"OWNER/NAME", b"me/birds")
    assert repository == "me/birds" and files == expected | {"README.md": card} and hub.private == {"me/birds": False}
    assert b'from_pretrained("me/birds")' in card
    assert f"me/birds: 4 files in one commit, {hub.endpoint}/me/birds/commit/{COMMIT}" in done.stdout
    assert f"model.safetensors  {len(expected['model.safetensors']):,} bytes" in done.stdout


@pytest.fixture
def serve(monkeypatch):
    """Return the function that serves a hub to the client in this process."""
    with contextlib.ExitStack() as hubs:

        def start(refuse: str | None = None, token: str = TOKEN) -> UploadHub:
            hub = hubs.enter_context(upload_hub(refuse))
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
            monkeypatch.setenv("HF_TOKEN", token)
            return hub

        huggingface_hub.utils.disable_progress_bars()
        yield start
        huggingface_hub.utils.enable_progress_bars()


def test_private_repositories(exported, serve, succeed, fail):
    hub = serve()
    succeed("weights", "push", exported, "me/secret", "--private")
    assert hub.private == {"me/secret": True} and len(hub.commits) == 1
    hub.private["me/open"] = False
    error = fail("weights", "push", exported, "me/open", "--private")
    assert "me/open exists and is public; make it private in its settings" in error
    succeed("weights", "push", exported, "me/open")  # a new version in an existing repository
    assert [repository for repository, _ in hub.commits] == ["me/secret", "me/open"]


def test_a_refused_token_is_one_line_and_publishes_nothing(exported, serve, fail):
    hub = serve(token="hf_other")
    error = fail("weights", "push", exported, "me/birds")
    assert_contains(error, ["me/birds: the Hub refused the upload", "401", "set HF_TOKEN to one with write access"])
    assert not hub.commits and not hub.private


def test_a_missing_token_is_one_line(exported, fail, monkeypatch):
    monkeypatch.setattr("aim_lightning.weights.upload.get_token", lambda: None)
    assert "the Hub needs a token; set HF_TOKEN" in fail("weights", "push", exported, "me/birds")


@pytest.mark.parametrize("part", ["/commit/", "/objects/"])
def test_a_refused_upload_is_one_line_and_publishes_nothing(exported, serve, fail, part):
    hub = serve(refuse=part)
    assert_contains(fail("weights", "push", exported, "me/birds"), ["me/birds: the Hub refused the upload", "403"])
    assert not hub.commits and any(part in request for request in hub.requests)


def test_without_a_network(exported, fail, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOWHERE)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    error = fail("weights", "push", exported, "me/birds")
    assert_contains(error, [f"error: me/birds: the upload to {NOWHERE} failed", "nothing was published, try again"])


def test_incomplete_directories_are_refused_before_any_request(exported, tmp_path, fail):
    def refuse(directory, repository="me/birds"):
        return fail("weights", "push", directory, repository)

    assert "is not the name of a repository; give OWNER/NAME" in refuse(exported, "birds")
    assert "nowhere is not a directory" in refuse(tmp_path / "nowhere")
    assert "main holds no config.json; write it with `weights export`" in refuse(tmp_path / "runs/birds/main")
    (exported / "model.safetensors").rename(exported / "model-00001-of-00002.safetensors")
    assert "holds none of model.safetensors" in refuse(exported)
    names = {name: f"model-0000{i}-of-00002.safetensors" for i, name in ((1, "a"), (2, "b"))}
    (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert "lacks model-00002-of-00002.safetensors of model.safetensors.index.json" in refuse(exported)
