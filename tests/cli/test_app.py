"""`app`: the page of a run as a process, compared with `sample`."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import start_python
from evaluation.small import config, workspace  # noqa: F401
from helpers import free_port
from huggingface_hub import constants
from sampling.test_page import client, pixels

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.grid import labelled_grid


@pytest.mark.slow
def test_the_page_of_a_run_gives_the_images_of_sample(workspace, config, tmp_path, succeed, monkeypatch):  # noqa: F811
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # of Gradio's client
    options = ["--sampling.seed", "5", "--sampling.temperature", "0.9"]
    succeed("sample", "--config", config, "--classes", "blue", "--num", 2, "--out", tmp_path, *options)
    expected = [pixels(path) for path in sorted(tmp_path.glob("blue-*.png"))]
    port = free_port()
    command = ["app", "--config", config, "--port", port, *options]
    server = start_python("-m", "aim_lightning", *command, TMPDIR=str(tmp_path))
    try:
        lines = []
        while not lines or not lines[-1].startswith("page: "):
            lines.append(server.stdout.readline())
            assert lines[-1], lines
        assert lines[-1] == f"page: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        page = client(f"http://127.0.0.1:{port}")
        values = {"images": 2, "seed": 5, "cfg_scale": 1.5, "temperature": 0.9, "top_k": 0, "top_p": 1}
        grid = pixels(page.predict(name="blue", **values, api_name="/generate"))
        images = torch.from_numpy(np.stack(expected)).movedim(-1, 1)
        assert np.array_equal(grid, labelled_grid(images, 2, []).movedim(0, -1))
    finally:
        server.terminate()
        rest = server.communicate(timeout=30)[0]
    assert "Traceback" not in rest


def test_mistakes_are_named_before_the_page_starts(config, fail):  # noqa: F811
    assert "--port is 70000" in fail("app", "--config", config, "--port", 70000)
    assert "no checkpoint" in fail("app", "--config", config, "--run", "absent")
    assert "cannot be combined" in fail("app", "--config", config, "--weights", "x", "--raw")


def test_published_weights_have_a_page_without_an_experiment(workspace, monkeypatch, fail):  # noqa: F811
    directories = []

    def serve(page, host, port):
        directories.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        assert directories[0].stat().st_mode & 0o77 == 0
        raise UserError(f"{page.title} {host} {port}; stop here")

    monkeypatch.setattr("aim_lightning.pipeline.page.serve", serve)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/tmp/gradio")  # restored after the test
    assert "published 0.0.0.0 7860" in fail("app", "--weights", workspace / "published", "--host", "0.0.0.0")
    assert not directories[0].exists()
