"""TensorBoard: the event file on a full disk and after restarts, the page of related curves, and histograms."""

import re
from types import SimpleNamespace

import torch
from integration.tiny import events, hparam_sessions, scalars
from torch.nn import functional as F

from aim_lightning.callbacks.logging import tensorboard, tensorboard_writer
from aim_lightning.callbacks.logging.tensorboard_writer import RunWriter


def log(writer, steps):
    for step in steps:
        writer.add_scalar("loss", float(step), step)
        writer.flush()


def test_no_file_is_created_before_the_first_flush(tmp_path):
    writer = RunWriter(str(tmp_path / "run"))
    writer.add_scalar("loss", 1.0, 0)
    assert not (tmp_path / "run").exists()
    writer.close()
    assert scalars(tmp_path / "run") == {"loss": [(0, 1.0)]}


def test_events_are_written_once_a_full_disk_has_room(tmp_path, file_limit, capsys):
    writer = RunWriter(str(tmp_path))
    log(writer, range(3))
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    for room in (0, 1, 30):  # half a record does not stay
        file_limit(size + room)
        log(writer, range(3 + room, 4 + room))
        assert file.stat().st_size in (size, size + room) and len(scalars(tmp_path)["loss"]) == 3
    assert capsys.readouterr().err.count("cannot be written (File too large); its events wait for room") == 1
    file_limit(None)
    log(writer, [50])
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [0, 1, 2, 3, 4, 33, 50]


def test_events_in_memory_are_bounded(tmp_path, file_limit, capsys, monkeypatch):
    monkeypatch.setattr(tensorboard_writer, "MOST_WAITING", 500)
    writer = RunWriter(str(tmp_path))
    file_limit(0)
    log(writer, range(100))
    assert len(writer._events.waiting) < 600 and capsys.readouterr().err.count("get a hole") == 1
    file_limit(None)
    log(writer, [200, 201])
    steps = [step for step, _ in scalars(tmp_path)["loss"]]
    assert steps[:5] == [0, 1, 2, 3, 4] and steps[-1] == 201


def test_a_later_start_replaces_steps(tmp_path, monkeypatch):
    log(RunWriter(str(tmp_path)), range(6))
    monkeypatch.setattr(tensorboard_writer.time, "time", lambda: 4e9)  # its name comes later
    second = RunWriter(str(tmp_path), purge_step=3)
    log(second, [3])
    assert scalars(tmp_path)["loss"] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def test_text_and_layout_appear_once_per_run(tmp_path, monkeypatch):
    for number, purge_step in enumerate((0, 0, 5, 10)):  # the first start has ended without a checkpoint
        monkeypatch.setattr(tensorboard_writer.time, "time", lambda number=number: 4e9 + number)
        writer = RunWriter(str(tmp_path), purge_step)
        monkeypatch.setattr(tensorboard, "writer", lambda trainer, writer=writer: writer)
        log_page({"run": "a"})
        writer.close()
    accumulator = events(tmp_path)
    tags = accumulator.Tags()["tensors"]
    assert sorted(tags) == ["configuration/text_summary", "custom_scalars__config__"]
    assert [len(accumulator.Tensors(tag)) for tag in tags] == [1, 1]
    assert hparam_sessions(tmp_path) == {".": ({"parameters": 10}, {})}


def log_page(configuration):
    page = tensorboard.TensorBoardPage()
    page.configuration = configuration
    module = SimpleNamespace(network=torch.nn.Linear(4, 2), device=torch.device("cpu"))
    page.on_fit_start(SimpleNamespace(global_step=0, callbacks=[], state=SimpleNamespace(fn="fit")), module)


def test_the_hparams_tab_shows_options_and_last_validation_metrics_of_runs_of_both_stages(tmp_path, monkeypatch):
    optimizer = {"base_learning_rate": 0.25, "warmup_steps": "auto"}
    configurations = {
        "aim/a": {"seed_everything": 3, "model": {"init_args": {"label_dropout": 0.1, "optimizer": optimizer}}},
        "aim/b": {"seed_everything": 3, "model": {"init_args": {"label_dropout": 0.1, "optimizer": optimizer}}},
        "vq/a": {"model": {"init_args": {"network": {"codebook_size": 256}}}, "trainer": None},
    }
    for number, (name, configuration) in enumerate(configurations.items()):
        writer = RunWriter(str(tmp_path / name))
        monkeypatch.setattr(tensorboard, "writer", lambda trainer, writer=writer: writer)
        log_page(configuration)
        for step in (1, 2):
            writer.add_scalar("val/psnr" if "vq" in name else "val/loss", 10 * number + step, step)
        writer.close()
    sessions = hparam_sessions(tmp_path)
    stage_2 = {"parameters": 10, "seed": 3, "label_dropout": 0.1, "base_learning_rate": 0.25}
    assert sessions["aim/a"] == (stage_2, {"val/loss": 2}) and sessions["aim/b"] == (stage_2, {"val/loss": 12})
    assert sessions["vq/a"] == ({"parameters": 10, "codebook_size": 256}, {"val/psnr": 22})


class Everything:
    """A part that a run has, and all parts of it."""

    def __getattr__(self, name):
        return self


def test_every_chart_selects_its_tags_only():
    charts = {name: chart for charts in tensorboard.CHARTS.values() for name, chart in charts.items()}
    tags = {tag for chart in charts.values() for tag in chart["tags"] if "*" not in tag}
    layout = {name: chart for page in tensorboard._layout(Everything()).values() for name, chart in page.items()}
    assert layout.keys() == charts.keys()
    for name, (_, expressions) in layout.items():
        selected = {tag for tag in tags for expression in expressions if re.match(expression, tag)}
        assert selected == tags.intersection(charts[name]["tags"]), name


def test_a_chart_needs_one_of_its_parts():
    adversary = SimpleNamespace(config=SimpleNamespace(adaptive=False))
    layout = tensorboard._layout(SimpleNamespace(model=SimpleNamespace(adversary=adversary), callbacks=None))
    assert set(layout) == {"training", "adversarial"} and set(layout["training"]) == {"loss", "gradient norm"}
    parts = SimpleNamespace(callbacks=SimpleNamespace(TrainingEvaluation=SimpleNamespace(compare=True)))
    assert {"Fréchet distance of samples", "precision and recall"} < set(tensorboard._layout(parts)["scores"])


def test_nearest_cosine_is_that_of_another_code(monkeypatch):
    monkeypatch.setattr(tensorboard, "CODES_AT_A_TIME", 3)
    codes = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    codes[5] = codes[2]
    products = (codes @ codes.T).fill_diagonal_(-1)
    cosines = tensorboard.nearest_cosine(codes)
    assert torch.allclose(cosines, products.amax(1)) and torch.allclose(cosines[[2, 5]], torch.ones(2))
