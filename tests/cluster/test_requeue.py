"""The decision to requeue a job, the output of scontrol, and the records of a run's jobs."""

import errno
import json
from unittest.mock import Mock

import pytest
from conftest import ROOT
from helpers import assert_user_error

from aim_lightning.cluster import job_registry, requeue, slurm_api
from aim_lightning.cluster.requeue import RequeueDecision, act, cause_of, decide
from aim_lightning.cluster.signals import USR1, Stopped
from aim_lightning.cluster.slurm_api import Job, NoCommand, SlurmError, SlurmJobInfo, parse_jobs, show
from aim_lightning.utils.errors import UserError

# What SLURM 22.05 printed, shortened.
RUNNING, ARRAY = ((ROOT / f"tests/cluster/scontrol_{name}.txt").read_text() for name in ("running", "array"))


def test_reading_scontrol():
    (job,) = parse_jobs(RUNNING)
    assert job == SlurmJobInfo("12", "RUNNING", "None", 0, False, True, "n[1-2]", "00:00:22", "00:30:00")
    last, first = parse_jobs(ARRAY)
    assert (last.id, last.state, last.nodes) == ("9_4", "PENDING", "")
    assert first == SlurmJobInfo("9_3", "COMPLETING", "TimeLimit", 2, True, False)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("9_4", {4}), ("9_0-3,7%2", {0, 1, 2, 3, 7}), ("9_0-6:3", {0, 3, 6}), ("9_1,5,...", set(range(9))), ("9", set())],
)
def test_tasks_that_wait_are_one_record(name, tasks):
    assert {task for task in range(9) if SlurmJobInfo(name, "PENDING").holds(task)} == tasks


WARNED, QUEUED = "its time runs out (SIGUSR1)", "SLURM has already put it back into the queue"
CANCELLED, TIMED_OUT = "it was cancelled", "its time ran out"
DECISIONS = [
    ("warning", {"state": "RUNNING"}, "requeue", WARNED),
    ("sigterm", {"state": "RUNNING"}, "stay", "SIGTERM came without preemption or time limit"),
    ("sigterm", {"state": "RUNNING", "preempted": True}, "requeue", "it was preempted"),
    ("sigterm", {"state": "COMPLETING", "reason": "TimeLimit"}, "requeue", TIMED_OUT),
    ("sigterm", {"state": "TIMEOUT"}, "requeue", TIMED_OUT),  # the limit came before a warning
    ("sigterm", {"state": "COMPLETING", "restarts": 1}, "already", QUEUED),
    ("warning", {"state": "PENDING"}, "already", QUEUED),
    ("warning", {"state": "REQUEUED"}, "already", QUEUED),
    ("warning", {"state": "COMPLETING"}, "stay", CANCELLED),  # scancel came after the warning
    ("warning", {"state": "CANCELLED"}, "stay", CANCELLED),
    ("warning", {"state": "RUNNING", "may_requeue": False}, "refused", "it was submitted with --no-requeue"),
    ("crash", {"state": "RUNNING"}, "requeue", "its processes ended"),
    ("crash", {"state": "COMPLETING", "reason": "TimeLimit"}, "requeue", TIMED_OUT),
    ("crash", {"state": "COMPLETING"}, "stay", CANCELLED),
]


@pytest.mark.parametrize(("cause", "fields", "action", "reason"), DECISIONS)
def test_the_decision_and_its_reason(cause, fields, action, reason):
    assert decide(cause, 0, SlurmJobInfo("1", **fields)) == RequeueDecision(action, reason)


def test_a_crash_is_not_requeued_if_the_option_is_false():
    assert decide("crash", 0, SlurmJobInfo("1", "RUNNING"), requeue_on_crash=False).action == "stay"


@pytest.mark.parametrize(
    ("code", "cause"),
    [(0, None), (2, None), (69, None), (130, None), (75, "warning"), (138, "warning"), (143, "sigterm"), (1, "crash"),
     (70, "crash"), (74, "crash"), (137, "crash"), (139, "crash")],
)  # fmt: skip
def test_exit_codes(code, cause):
    assert cause_of(code, 1) == cause_of(code, 143) == cause
    assert cause_of(None, code) == ("crash" if code == 143 else cause)  # srun ends the others when one has crashed


@pytest.fixture
def scontrol(monkeypatch):
    """A fake of SLURM's commands."""
    monkeypatch.setattr(requeue, "WAITS", (0.0,))
    monkeypatch.setattr(slurm_api, "command", scontrol := Mock())
    return scontrol


def test_a_restarting_controller_is_called_again(scontrol):
    fault = SlurmError("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    scontrol.side_effect = [fault, RUNNING, ""]
    assert act("warning", Job("12", 0, "n1")).action == "requeue"
    assert scontrol.call_args.args == ("scontrol", "requeue", "12")


def test_a_refusal_is_reported_with_the_message_of_slurm(scontrol):
    scontrol.side_effect = [SlurmError("Access/permission denied for job 12"), NoCommand("no scontrol")]
    assert act("warning", Job("12", 0, "n1")) == RequeueDecision("refused", "Access/permission denied for job 12")
    assert act("warning", Job("12", 0, "n1")).action == "outside"


def test_an_unknown_job_has_no_record(scontrol):
    scontrol.side_effect = SlurmError("slurm_load_jobs error: Invalid job id specified")
    assert show("7") == []


def test_the_job_of_this_process():
    assert Job.current({}) is None
    assert Job.current({"SLURM_JOB_ID": "9"}) == Job("9", 0, "?")
    env = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "4", "SLURM_RESTART_COUNT": "2"}
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURMD_NODENAME": "n1"}
    assert Job.current(env | step) == Job("9_4", 2, "n1", 8, 2)
    assert Job.current(env | step | {"SLURM_JOB_NAME": "bash"}).tasks is None


def register(directory, number, step, limit=3, restart=0) -> int:
    return job_registry.register_start(directory, Job(number, restart, "n1"), step, limit)


def test_the_limit_counts_starts_of_one_job_at_one_step(tmp_path):
    assert [register(tmp_path, "12", 40, limit=2) for _ in range(2)] == [1, 2]
    with pytest.raises(UserError, match="job 12 has started 2 times at step 40 without reaching a new checkpoint"):
        register(tmp_path, "12", 40, limit=2)
    assert register(tmp_path, "12", 44) == register(tmp_path, "13", 44) == 1


def test_a_second_job_does_not_reset_the_count_of_the_first(tmp_path):
    """The lease refuses it later; the first job is requeued for the fifth time, each time with progress."""
    for restart in range(5):
        assert register(tmp_path, "10", 40 + restart, restart=restart) == 1
    assert register(tmp_path, "11", 44) == register(tmp_path, "10", 45, restart=5) == 1
    for number in range(20, 40):
        register(tmp_path, str(number), 45)
    assert len(json.loads((tmp_path / "restarts.json").read_text())) == job_registry.RECORDS


def test_starts_that_a_full_disk_kept_out_of_the_record_count_too(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert register(tmp_path, "12", 40, limit=9, restart=4) == 5  # none of them was recorded
    assert register(tmp_path, "12", 44, restart=5) == 1
    monkeypatch.setattr(job_registry, "write_json", full)
    assert register(tmp_path, "12", 44, restart=6) == 2
    with pytest.raises(UserError, match="job 12 has started 2 times at step 44"):
        register(tmp_path, "12", 44, limit=2, restart=7)
    assert register(tmp_path, "12", 48, restart=7) == 2  # since the last recorded one
    assert capsys.readouterr().err.count("restarts.json cannot be written (No space left on device)") == 1


def test_the_exit_code_is_recorded_for_this_start_of_the_job(tmp_path):
    first, second = (Job("12", restart, "n1") for restart in (1, 2))
    assert job_registry.recorded_exit(tmp_path, first) is None
    job_registry.record_exit(tmp_path, first, 75)
    assert [job_registry.recorded_exit(tmp_path, job) for job in (first, second)] == [75, None]


def test_a_cancelled_array_is_cancelled_for_each_of_its_runs(tmp_path):
    for run, number in (("a", "9"), ("b", "10")):
        (tmp_path / run).mkdir()
        job_registry.add(tmp_path / run, number)
    job_registry.mark_cancelled(tmp_path / "a", "9")
    assert list(job_registry.jobs(tmp_path / "a")) == ["9"]
    assert job_registry.is_cancelled(tmp_path, "9_3") and not job_registry.is_cancelled(tmp_path, "10")
    job_registry.mark_cancelled(tmp_path / "b", "10_2")  # one task alone
    assert job_registry.is_cancelled(tmp_path, "10_2") and not job_registry.is_cancelled(tmp_path, "10_3")


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"job": 5, "cancelled": false}]', '[{"job": "5"}]', "[null]"])
def test_other_content_than_jobs_is_refused(tmp_path, content):
    (tmp_path / "jobs.json").write_text(content)
    assert_user_error("jobs.json was not written by this project; move it away", job_registry.jobs, tmp_path)


def test_timings_keep_the_longest(tmp_path):
    job_registry.record_timings(tmp_path, checkpoint_seconds=2.0, start_seconds=9.0, stopped_at=100.0)
    job_registry.record_timings(tmp_path, checkpoint_seconds=1.0, start_seconds=3.0)
    timings = {"checkpoint_seconds": 2.0, "start_seconds": 3.0, "stopped_at": 100.0}
    assert job_registry.read_timings(tmp_path) == timings


def test_a_stop_reports_its_reason():
    assert str(Stopped(USR1, 7)) == "stopped by SIGUSR1 at step 7"
