"""docs/quickstart.ipynb, executed in a kernel on a small run."""

import shutil

import nbformat
import pytest
from conftest import ROOT
from data.builders import save_noise
from evaluation.small import workspace  # noqa: F401
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from aim_lightning.config.yaml import dump

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def execute(directory, monkeypatch) -> list[dict]:
    """Execute the notebook in docs/ of a directory and return its outputs."""
    (directory / "docs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(directory / "jupyter"))
    notebook, metadata = nbformat.read(NOTEBOOK, 4), {"metadata": {"path": str(directory / "docs")}}
    NotebookClient(notebook, timeout=120, resources=metadata).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.long
def test_the_notebook_generates_reconstructs_and_scores(workspace, tmp_path, monkeypatch):  # noqa: F811
    run = tmp_path / "runs" / "demo_aim" / "main"
    shutil.copytree(workspace / "runs" / "small" / "main", run)
    for row in range(24):
        save_noise(tmp_path / "images" / "abc"[row % 3] / f"{row}.png", row)
    images = {"train": "images", "val": "images", "image_size": 4, "resize": 4}
    (run / "config.yaml").write_text(dump({"images": images}))
    outputs = execute(tmp_path, monkeypatch)
    shown = [output["data"] for output in outputs if "data" in output]
    assert [("image/png" in data) for data in shown] == [False, True, True, True]
    assert all("PIL.Image.Image" in data["text/plain"] for data in shown[1:3])
    text = "".join(output.get("text", "") for output in outputs)
    assert "4 codes per image, psnr_8 = " in text
    for name in ("fd_effnet_lite0_500", "precision_effnet_lite0_500", "mind_effnet_lite0_500", "class_agreement_500"):
        assert f"{name} " in text


def test_a_missing_run_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(CellExecutionError) as caught:
        execute(tmp_path, monkeypatch)
    assert caught.value.ename == "SystemExit"
    assert caught.value.evalue == "runs/demo_aim/main does not exist; run `make demo` first"


def test_the_notebook_is_committed_without_outputs():
    cells = nbformat.read(NOTEBOOK, 4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
