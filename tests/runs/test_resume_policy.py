"""The decision of `fit` about a run directory, as a function of its content."""

import dataclasses
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import assert_user_error
from omegaconf import OmegaConf

from aim_lightning.config.yaml import read_mapping
from aim_lightning.runs.resume_policy import Progress, RunContent, decide, decide_on_data, max_seconds

CHANGES = read_mapping(ROOT / "tests/runs/changes.yaml", "changes.yaml")
CONFIG = CHANGES["before"]
SCHEDULE = "model.init_args.optimizer.schedule"


def changed(path, value, base=CONFIG):
    """Return a copy of a configuration with another value at a dotted path."""
    config = OmegaConf.create(base)
    OmegaConf.update(config, path, value, merge=False)
    return OmegaConf.to_container(config)


def content(now=CONFIG, step=40, epoch=2, damaged=(), before=CONFIG):
    reasons = {Path(line.split()[0]): line for line in damaged}
    return RunContent(Progress(Path("a.ckpt"), step, epoch), reasons, before, now)


def test_fresh_continue_finished():
    assert decide(RunContent(None, {}, {}, CONFIG)).action == "fresh"
    decision = decide(content())
    assert (decision.action, decision.step, decision.checkpoint) == ("continue", 40, Path("a.ckpt"))
    assert decide(content(step=100)).action == "finished"
    assert decide(content(changed("trainer.max_steps", 200), step=100)).action == "continue"
    epochs = changed("trainer.max_epochs", 2)
    assert decide(content(epochs, before=epochs)).action == "finished"


@pytest.mark.parametrize("limit", ["00:01:00:05", {"hours": 1, "seconds": 5}])
def test_max_time_counts_all_starts(limit):
    timed = content(changed("trainer.max_time", limit))
    for seconds, action in ((3604.9, "continue"), (3605.0, "finished")):
        newest = dataclasses.replace(timed.newest, seconds=seconds)
        assert decide(dataclasses.replace(timed, newest=newest)).action == action


@pytest.mark.parametrize("limit", ["1:30", {"hour": 1}])
def test_an_unreadable_max_time_is_refused(limit):
    assert_user_error("trainer.max_time is .*; write DD:HH:MM:SS", max_seconds, {"max_time": limit})


@pytest.mark.parametrize(("path", "value"), CHANGES["harmless"].items())
def test_harmless_changes_continue_and_are_reported(path, value):
    decision = decide(content(changed(path, value)))
    assert decision.action == "continue"
    assert any(path in note for note in decision.notes) and any(path in line for line in decision.changes)


@pytest.mark.parametrize(("path", "value"), CHANGES["refused"].items())
def test_other_changes_refuse_and_can_be_forced(path, value):
    decision = decide(content(changed(path, value)))
    assert decision.action == "refuse"
    assert path in decision.notes[-1] and "--allow_changes" in decision.notes[-1]
    assert decide(content(changed(path, value)), allow_changes=True).action == "continue"


@pytest.mark.parametrize(("key", "value"), [("trainer.max_steps", 200), ("trainer.max_epochs", 7)])
def test_longer_training_under_a_decaying_schedule_is_another_training(key, value):
    before = changed(SCHEDULE, "cosine")
    decision = decide(content(changed(key, value, before), before=before))
    assert decision.action == "refuse" and key in decision.notes[-1]


@pytest.mark.parametrize("now", [{"rows": 57, "fingerprint": "abc"}, {"rows": 61, "fingerprint": "xyz"}])
def test_other_rows_under_the_same_path_refuse_and_can_be_forced(now):
    decision, before = decide(content()), {"rows": 61, "fingerprint": "abc", "steps": 40}
    assert decide_on_data(decision, before, {**before, "steps": 0}) == decision
    assert decide_on_data(decision, None, now) == decision  # a checkpoint without a record of its data
    refused = decide_on_data(decision, before, now)
    line = f"data had 61 rows (abc), has {now['rows']} rows ({now['fingerprint']})"
    assert refused.action == "refuse" and line in refused.notes[-1] and "--allow_changes" in refused.notes[-1]
    forced = decide_on_data(decision, before, now, allow_changes=True)
    assert forced.action == "continue" and forced.changes == [line] and line in forced.notes[-1]
    assert dataclasses.replace(forced, notes=[], changes=[]) == decision


def test_damaged_checkpoints_are_named():
    decision = decide(content(damaged=["b.ckpt is damaged"]))
    assert decision.action == "continue" and "b.ckpt is damaged" in decision.notes[0]
    decision = decide(RunContent(None, {Path("b.ckpt"): "b.ckpt is damaged"}, {}, CONFIG))
    assert decision.action == "refuse" and "move the run away" in decision.notes[-1]
