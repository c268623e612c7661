"""`aim-lightning slurm` with SLURM's commands played by small scripts: what is asked, written and said."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from integration.tiny import write_experiment

from aim_lightning.checkpoint.format import KEYS
from aim_lightning.checkpoint.io import write_checkpoint
from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.main import main
from aim_lightning.cli.slurm.in_job import resubmission
from aim_lightning.runs.directory import RunDirectory

COMMANDS = {
    "sbatch": 'echo "$@" >> "$CALLS"; echo 41',
    "scancel": 'echo "scancel $@" >> "$CALLS"',
    "scontrol": (
        'echo "scontrol $@" >> "$CALLS"; [ "$1$REQUEUE_KILLS" = requeue1 ] && kill -TERM $PPID $$; '
        'case "$2" in job) [ -n "$STATE" ] && '
        'echo "JobId=$3 $ARRAY JobState=$STATE Reason=None Requeue=1 Restarts=0 NodeList=n1" || '
        '{ echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; };; esac'
    ),
}


@pytest.fixture
def slurm(tmp_path, monkeypatch, capsys):
    """(call, place): an `aim-lightning slurm` process; `state` is what scontrol says of any job."""
    experiment = write_experiment(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, body in COMMANDS.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)

    def call(*words, state="", before=(), **more):
        action = ["config"] if words[0] == "config" else ["slurm", words[0]]
        command = [sys.executable, "-m", "aim_lightning", *action, "--config", experiment, *words[1:]]
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "STATE": state, "CALLS": str(tmp_path / "calls"), **more}
        if not before and words[0] in ("submit", "config"):  # a process of its own would import torch each time
            with monkeypatch.context() as patch:
                patch.chdir(ROOT)
                for name, value in env.items():
                    patch.setenv(name, value)
                code = main([str(word) for word in command[3:]])
            return subprocess.CompletedProcess(command, code, *capsys.readouterr())
        command = [*before, *command]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)

    return call, tmp_path


def test_dry_shows_the_script_and_does_nothing(slurm):
    call, place = slurm
    done = call("submit", "--dry", "true", "--cluster.partition", "gpu")
    assert done.returncode == 0 and done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=tiny/main")
    assert "#SBATCH --partition=gpu" in done.stdout and "not measured yet" in done.stderr
    assert not (place / "runs").exists() and not (place / "calls").exists()


def test_help_names_the_actions_and_every_option_of_the_section(slurm):
    text = slurm[0]("submit", "--help").stdout
    assert "--sweep FILE" in text
    for option in ("signal_lead", "requeue_on_crash", "hang_seconds", "container", "gpu_request"):
        assert f"--cluster.{option}" in text


def test_submit_status_and_cancel(slurm):
    call, place = slurm
    run = place / "runs/tiny/main"
    done = call("submit")
    assert done.returncode == 0 and "job 41: 1 nodes x 1 ranks" in done.stdout, done.stderr
    assert f"--parsable {run}/job.sbatch" in (place / "calls").read_text()
    assert "d_model: 32" in (run / "job.yaml").read_text()
    again = call("submit", state="PENDING")
    assert again.returncode == 2 and "has job 41 already (PENDING)" in again.stderr
    assert "job 41: RUNNING on n1" in call("status", state="RUNNING").stdout
    done = call("cancel", state="RUNNING")
    assert "job 41 is cancelled and will not come back" in done.stdout
    assert "scancel 41" in (place / "calls").read_text()
    started = call("started", SLURM_JOB_ID="41")
    assert started.returncode == 69 and "was cancelled; it does not train again" in started.stdout


def test_arrays_freeze_a_configuration_a_task(slurm):
    call, place = slurm
    (place / "sweep").write_text("# rates\n--model.optimizer.base_learning_rate 1e-3\n--model.label_dropout 0.5\n")
    assert "runs main-0 … main-1" in call("submit", "--sweep", str(place / "sweep"), "--parallel", "1").stdout
    first, second = ((place / f"runs/tiny/main/job-{i}.yaml").read_text() for i in (0, 1))
    assert "run: main-0" in first and "base_learning_rate: 0.001" in first
    assert "run: main-1" in second and "label_dropout: 0.5" in second
    assert "#SBATCH --array=0,1%1" in (place / "runs/tiny/main/job.sbatch").read_text()
    assert call("submit", "--seeds", "7-8", "--run", "s").returncode == 0
    seventh = (place / "runs/tiny/s/job-7.yaml").read_text()
    assert "run: s-7" in seventh and seventh.count("seed: 7") == 2  # interpolations follow


def test_a_single_run_detects_the_array_that_trains_it(slurm):
    call, place = slurm
    assert call("submit", "--seeds", "0-1", "--run", "arr").returncode == 0
    waits = {"state": "PENDING", "ARRAY": "ArrayJobId=41 ArrayTaskId=0-1%1"}
    array = f"job 41_1 (a task of the array of {place}/runs/tiny/arr)"
    assert f"{array}: PENDING" in call("status", "--run", "arr-1", **waits).stdout
    assert "has no jobs" in call("status", "--run", "arr-2", **waits).stdout
    for double in (["--run", "arr-1"], ["--run", "arr"], ["--run", "arr", "--seeds", "1"]):
        done = call("submit", *double, **waits)
        assert done.returncode == 2 and "has job 41" in done.stderr and "already (PENDING)" in done.stderr
    assert f"arr-1 has {array} already (PENDING)" in call("submit", "--run", "arr-1", **waits).stderr
    assert f"{array} is cancelled and will not come back" in call("cancel", "--run", "arr-1", **waits).stdout
    assert "scancel 41_1\n" in (place / "calls").read_text()
    task = {"SLURM_JOB_ID": "43", "SLURM_ARRAY_JOB_ID": "41"}
    for number, code in (("0", 0), ("1", 69)):  # the other tasks are not cancelled
        assert call("started", "--run", f"arr-{number}", SLURM_ARRAY_TASK_ID=number, **task).returncode == code


def test_a_run_that_an_array_would_train_too_is_refused(slurm):
    call = slurm[0]
    assert call("submit", "--run", "arr-1").returncode == 0
    done = call("submit", "--run", "arr", "--seeds", "0-1", state="RUNNING")
    assert done.returncode == 2 and "arr-1 has job 41 already (RUNNING)" in done.stderr


def test_a_job_that_was_given_to_sbatch_by_hand_is_the_run_s_own(slurm):
    call, place = slurm
    run = place / "runs/tiny/main"
    call("submit")
    for _ in range(2):
        assert call("started", "--config", run / "job.yaml", SLURM_JOB_ID="55").returncode == 0
    assert [entry["job"] for entry in json.loads((run / "jobs.json").read_text())] == ["41", "55"]
    assert "job 55: RUNNING" in call("status", state="RUNNING").stdout


def test_what_fit_would_refuse_is_refused_before_the_job_waits(slurm):
    """Of any task; no tensor is read for it."""
    call, place = slurm
    document = yaml.safe_load(call("config").stdout)
    content = {key: {} for key in KEYS} | {"configuration": document, "cursor": {"epoch": 0}}
    content["trainer"] = {"global_step": 4}
    write_checkpoint(content, place / "runs/tiny/main-1/checkpoints/step=00000004.ckpt")
    done = call("submit", "--seeds", "1-2")
    assert done.returncode == 2 and "main-1 is left as it is: the configuration changed: " in done.stderr
    assert "seed_everything was 3, is 1" in done.stderr and done.stderr.count("\n") == 1
    assert not (place / "calls").exists() and not (place / "runs/tiny/main").exists()
    assert call("submit", "--seeds", "1-2", "--allow_changes", "true").returncode == 0


def test_the_way_to_go_on_is_the_script_that_was_submitted(tmp_path):
    """`make slurm` would take another seed for a task of an array, and leave ARGS out."""
    directory = tmp_path / "arr"
    directory.mkdir()
    (directory / "job.sbatch").touch()
    for run, config, command in (
        ("arr-3", directory / "job-3.yaml", f"sbatch --array=3 {directory}/job.sbatch"),
        ("arr", directory / "job.yaml", f"sbatch {directory}/job.sbatch"),
        ("arr", tmp_path / "x.yaml", "make slurm EXP=x RUN=arr"),
    ):
        assert resubmission(RunDirectory("x", run, tmp_path), Arguments([config])) == command


def test_an_array_is_checked_against_what_its_tasks_have_measured(slurm):
    call, place = slurm
    for run, pause in (("main", 1.0), ("main-0", 90.0), ("main-1", 3.0)):
        directory = place / "runs/tiny" / run
        directory.mkdir(parents=True)
        (directory / "timings.json").write_text(
            json.dumps({"longest_pause_seconds": pause, "checkpoint_seconds": 10.0})
        )
    done = call("submit", "--seeds", "0-1")
    assert done.returncode == 2 and "up to 90.0 s between two batches" in done.stderr
    assert call("submit", "--seeds", "1", "--dry", "true").returncode == 0


SWEEP_LINES = [
    ("--trainer.devices 2 --trainer.strategy ddp", "main-1: trainer.devices was 1, is 2"),
    ("--trainer.num_nodes 2 --trainer.strategy ddp", "trainer.num_nodes was 1, is 2"),
    ("--data.num_workers 3", "data.num_workers was 0, is 3"),
    ("--cluster.signal_lead 60", "cluster.signal_lead was 120, is 60"),
]


@pytest.mark.parametrize(("line", "words"), SWEEP_LINES)
def test_lines_of_a_sweep_that_need_another_job_script_are_refused(slurm, line, words):
    call, place = slurm
    (place / "sweep").write_text(f"--model.label_dropout 0.5\n{line}\n")
    done = call("submit", "--sweep", str(place / "sweep"))
    assert done.returncode == 2 and words in done.stderr and "share one job script" in done.stderr
    assert done.stderr.count("\n") == 1 and not (place / "calls").exists()


def test_the_job_script_s_own_two_calls(slurm):
    call, place = slurm
    for start in (1, 2, 3):
        done = call("started", SLURM_JOB_ID="41", SLURM_RESTART_COUNT=str(start - 1))
        assert done.returncode == 0 and f"job 41 starts on ? (restart {start - 1}) at step 0" in done.stdout
    assert "has started 3 times at step 0" in call("started", SLURM_JOB_ID="41").stderr
    done = call("ended", "--code", "137", SLURM_JOB_ID="41", state="RUNNING")
    assert "training ended with exit code 137; job 41 is requeued" in done.stdout
    assert "scontrol requeue 41" in (place / "calls").read_text()
    stays = call("ended", "--code", "137", "--cluster.requeue_on_crash", "false", SLURM_JOB_ID="41", state="RUNNING")
    assert "is not requeued: cluster.requeue_on_crash is false" in stays.stdout
    outcome = {"job": "41", "starts": 0, "code": 2}
    (place / "runs/tiny/main/outcome.json").write_text(json.dumps(outcome))
    assert call("ended", "--code", "1", SLURM_JOB_ID="41", state="RUNNING").stdout == ""


def test_the_last_call_outlives_the_requeue_that_it_asks_for(slurm):
    """SLURM then sends SIGTERM to every process of the job; job.sbatch has them ignore it."""
    call, place = slurm
    job = {"SLURM_JOB_ID": "41", "state": "RUNNING", "REQUEUE_KILLS": "1"}
    done = call("ended", "--code", "137", before=["bash", "-c", "trap '' TERM USR1; \"$@\"", "-"], **job)
    assert done.returncode == 0 and "job 41 is requeued: its processes ended" in done.stdout
    assert "scontrol requeue 41" in (place / "calls").read_text()


WRONG_OPTIONS = [
    (["--trainer.devices", "auto"], "trainer.devices is 'auto'; a job needs the number of ranks per node"),
    (["--trainer.devices", "3", "--trainer.strategy", "ddp"], "global_batch_size 8 does not divide over 3"),
    (["--trainer.devices", "2"], "trainer.accelerator is 'cpu'; set --trainer.accelerator gpu, or"),
    (["--trainer.devices", "1"], "or --trainer.strategy ddp for ranks on CPUs"),
    (["--trainer.num_nodes", "2"], "trainer.accelerator is 'cpu'; set --trainer.accelerator gpu"),
    (
        ["--trainer.devices", "2", "--trainer.num_nodes", "3", "--trainer.strategy", "ddp"],
        "global_batch_size 8 does not divide over 6 devices",
    ),
    (["--seeds", "0-1", "--sweep", "x"], "exclude each other"),
    (["--sweep", "nothing"], "--sweep nothing does not exist"),
    (["--data.path", "nothing"], "nothing"),
    (["--cluster.launcher", "mpi"], "cluster.launcher is 'mpi'"),
    (["--cluster.tim", "1"], "cluster.tim is not an option of ClusterOptions"),
]


@pytest.mark.parametrize(("options", "words"), WRONG_OPTIONS)
def test_mistakes_are_reported_before_anything_is_written(slurm, options, words):
    call, place = slurm
    done = call("submit", *options)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (place / "runs").exists() and not (place / "calls").exists()
