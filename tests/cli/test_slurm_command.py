"""`aim-lightning slurm` with small scripts in place of SLURM's commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from integration.tiny import write_experiment

from aim_lightning.checkpoint.format import KEYS
from aim_lightning.checkpoint.io import write_checkpoint
from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.main import main
from aim_lightning.cli.slurm.in_job import resubmission
from aim_lightning.cluster.job_registry import record_timings
from aim_lightning.runs.directory import RunDirectory

MAIN = Path("runs/tiny/main")
PROGRAMS = ROOT / "tests/cli/slurm_programs"


@pytest.fixture
def slurm(tmp_path, monkeypatch, capsys):
    """Change to a directory with an experiment; return the function that runs `aim-lightning slurm` on it.

    Its option `state` is the state of every job in scontrol's output.
    """
    monkeypatch.chdir(tmp_path)
    experiment = write_experiment(tmp_path)

    def call(*words, state="", before=(), **more):
        action = ["config"] if words[0] == "config" else ["slurm", words[0]]
        command = [str(word) for word in (*action, "--config", experiment, *words[1:])]
        env = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "STATE": state, "CALLS": str(tmp_path / "calls"), **more}
        if before:
            command = [*before, sys.executable, "-m", "aim_lightning", *command]
            return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60)
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            code = main(command)
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    return call


def test_dry_prints_the_script_and_writes_nothing(slurm):
    done = slurm("submit", "--dry", "true", "--cluster.partition", "gpu")
    assert done.returncode == 0 and done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=tiny/main")
    assert "#SBATCH --partition=gpu" in done.stdout and "not measured yet" in done.stderr
    assert not Path("runs").exists() and not Path("calls").exists()


def test_help_names_the_actions_and_every_option_of_the_section(slurm):
    text = slurm("submit", "--help").stdout
    assert "--sweep FILE" in text
    for option in ("signal_lead", "requeue_on_crash", "hang_seconds", "container", "gpu_request"):
        assert f"--cluster.{option}" in text


def test_submit_status_and_cancel(slurm):
    done = slurm("submit")
    assert done.returncode == 0 and "job 41: 1 nodes x 1 ranks" in done.stdout, done.stderr
    assert f"--parsable {Path.cwd()}/{MAIN}/job.sbatch" in Path("calls").read_text()
    assert "d_model: 32" in (MAIN / "job.yaml").read_text()
    again = slurm("submit", state="PENDING")
    assert again.returncode == 2 and "has job 41 already (PENDING)" in again.stderr
    assert "job 41: RUNNING on n1" in slurm("status", state="RUNNING").stdout
    done = slurm("cancel", state="RUNNING")
    assert "job 41 is cancelled and will not be requeued" in done.stdout
    assert "scancel 41" in Path("calls").read_text()
    started = slurm("started", SLURM_JOB_ID="41")
    assert started.returncode == 69 and "was cancelled; it does not train again" in started.stdout


def test_status_leaves_out_directories_that_are_not_runs(slurm):
    for name in ("main-a", "main-ä"):
        (MAIN.parent / name / "checkpoints").mkdir(parents=True)
        (MAIN.parent / name / "checkpoints" / "step=00000004.ckpt").symlink_to("absent")  # not mounted here
    done = slurm("status")
    assert done.returncode == 0 and "main-a: step 4" in done.stdout and "main-ä" not in done.stdout, done.stderr


def test_arrays_freeze_one_configuration_per_task(slurm):
    Path("sweep").write_text("# rates\n--model.optimizer.base_learning_rate 1e-3\n--model.label_dropout 0.5\n")
    assert "runs main-0 … main-1" in slurm("submit", "--sweep", "sweep", "--parallel", "1").stdout
    first, second = ((MAIN / f"job-{i}.yaml").read_text() for i in (0, 1))
    assert "run: main-0" in first and "base_learning_rate: 0.001" in first
    assert "run: main-1" in second and "label_dropout: 0.5" in second
    assert "#SBATCH --array=0,1%1" in (MAIN / "job.sbatch").read_text()
    assert slurm("submit", "--seeds", "7-8", "--run", "s").returncode == 0
    seventh = Path("runs/tiny/s/job-7.yaml").read_text()
    assert "run: s-7" in seventh and seventh.count("seed: 7") == 2  # interpolations change too


def test_a_single_run_detects_the_array_that_trains_it(slurm):
    assert slurm("submit", "--seeds", "0-1", "--run", "arr").returncode == 0
    waits = {"state": "PENDING", "ARRAY": "ArrayJobId=41 ArrayTaskId=0-1%1"}
    array = f"job 41_1 (a task of the array of {Path.cwd()}/runs/tiny/arr)"
    assert f"{array}: PENDING" in slurm("status", "--run", "arr-1", **waits).stdout
    assert "has no jobs" in slurm("status", "--run", "arr-2", **waits).stdout
    for double in (["--run", "arr-1"], ["--run", "arr"], ["--run", "arr", "--seeds", "1"]):
        done = slurm("submit", *double, **waits)
        assert done.returncode == 2 and "has job 41" in done.stderr and "already (PENDING)" in done.stderr
    assert f"arr-1 has {array} already (PENDING)" in slurm("submit", "--run", "arr-1", **waits).stderr
    assert f"{array} is cancelled and will not be requeued" in slurm("cancel", "--run", "arr-1", **waits).stdout
    assert "scancel 41_1\n" in Path("calls").read_text()
    task = {"SLURM_JOB_ID": "43", "SLURM_ARRAY_JOB_ID": "41"}
    for number, code in (("0", 0), ("1", 69)):  # the other tasks are not cancelled
        assert slurm("started", "--run", f"arr-{number}", SLURM_ARRAY_TASK_ID=number, **task).returncode == code


def test_an_array_with_a_run_that_has_a_job_is_refused(slurm):
    assert slurm("submit", "--run", "arr-1").returncode == 0
    done = slurm("submit", "--run", "arr", "--seeds", "0-1", state="RUNNING")
    assert done.returncode == 2 and "arr-1 has job 41 already (RUNNING)" in done.stderr


def test_a_job_that_sbatch_started_is_recorded(slurm):
    slurm("submit")
    for _ in range(2):
        assert slurm("started", "--config", MAIN / "job.yaml", SLURM_JOB_ID="55").returncode == 0
    assert [entry["job"] for entry in json.loads((MAIN / "jobs.json").read_text())] == ["41", "55"]
    assert "job 55: RUNNING" in slurm("status", state="RUNNING").stdout


def test_changes_that_fit_refuses_are_refused_before_the_job_waits(slurm):
    """For any task, without reading a tensor."""
    configuration = yaml.safe_load(slurm("config").stdout)
    content = {key: {} for key in KEYS} | {"configuration": configuration, "cursor": {"epoch": 0}}
    content["trainer"] = {"global_step": 4}
    write_checkpoint(content, MAIN.with_name("main-1") / "checkpoints/step=00000004.ckpt")
    done = slurm("submit", "--seeds", "1-2")
    assert done.returncode == 2 and "main-1 is left as it is: the configuration changed: " in done.stderr
    assert "seed_everything was 3, is 1" in done.stderr and done.stderr.count("\n") == 1
    assert not Path("calls").exists() and not MAIN.exists()
    assert slurm("submit", "--seeds", "1-2", "--allow_changes", "true").returncode == 0


def test_the_command_that_continues_is_the_submitted_script(tmp_path):
    """`make slurm` would take another seed for a task of an array, and omit ARGS."""
    (directory := tmp_path / "arr").mkdir()
    (directory / "job.sbatch").touch()
    for run, config, command in (
        ("arr-3", directory / "job-3.yaml", f"sbatch --array=3 {directory}/job.sbatch"),
        ("arr", directory / "job.yaml", f"sbatch {directory}/job.sbatch"),
        ("arr", tmp_path / "x.yaml", "make slurm EXP=x RUN=arr"),
    ):
        assert resubmission(RunDirectory("x", run, tmp_path), Arguments([config])) == command


def test_an_array_is_checked_against_the_timings_of_its_tasks(slurm):
    for run, pause in (("main", 1.0), ("main-0", 90.0), ("main-1", 3.0)):
        (run_dir := MAIN.with_name(run)).mkdir(parents=True)
        record_timings(run_dir, longest_pause_seconds=pause, checkpoint_seconds=10.0)
    done = slurm("submit", "--seeds", "0-1")
    assert done.returncode == 2 and "up to 90.0 s between two batches" in done.stderr
    assert slurm("submit", "--seeds", "1", "--dry", "true").returncode == 0


def test_the_job_script_s_own_two_calls(slurm):
    for start in (1, 2, 3):
        done = slurm("started", SLURM_JOB_ID="41", SLURM_RESTART_COUNT=str(start - 1))
        assert done.returncode == 0 and f"job 41 starts on ? (restart {start - 1}) at step 0" in done.stdout
    assert "has started 3 times at step 0" in slurm("started", SLURM_JOB_ID="41").stderr
    done = slurm("ended", "--code", "137", SLURM_JOB_ID="41", state="RUNNING")
    assert "training ended with exit code 137; job 41 is requeued" in done.stdout
    assert "scontrol requeue 41" in Path("calls").read_text()
    stays = slurm("ended", "--code", "137", "--cluster.requeue_on_crash", "false", SLURM_JOB_ID="41", state="RUNNING")
    assert "is not requeued: cluster.requeue_on_crash is false" in stays.stdout
    outcome = {"job": "41", "starts": 0, "code": 2}
    (MAIN / "outcome.json").write_text(json.dumps(outcome))
    assert slurm("ended", "--code", "1", SLURM_JOB_ID="41", state="RUNNING").stdout == ""


def test_the_last_call_outlives_the_requeue_that_it_asks_for(slurm):
    """SLURM then sends SIGTERM to every process of the job; job.sbatch has them ignore it."""
    job = {"SLURM_JOB_ID": "41", "state": "RUNNING", "REQUEUE_KILLS": "1"}
    done = slurm("ended", "--code", "137", before=["bash", "-c", "trap '' TERM USR1; \"$@\"", "-"], **job)
    assert done.returncode == 0 and "job 41 is requeued: its processes ended" in done.stdout
    assert "scontrol requeue 41" in Path("calls").read_text()


WRONG_OPTIONS = [
    ("--trainer.devices auto", "trainer.devices is 'auto'; a job needs the number of ranks per node"),
    ("--trainer.devices 3 --trainer.strategy ddp", "global_batch_size 8 does not divide over 3"),
    ("--trainer.devices 2", "trainer.accelerator is 'cpu'; set --trainer.accelerator gpu, or"),
    ("--trainer.devices 1", "or --trainer.strategy ddp for ranks on CPUs"),
    ("--trainer.num_nodes 2", "trainer.accelerator is 'cpu'; set --trainer.accelerator gpu"),
    ("--trainer.devices 2 --trainer.num_nodes 3 --trainer.strategy ddp", "global_batch_size 8 does not divide over 6"),
    ("--seeds 0-1 --sweep x", "exclude each other"),
    ("--sweep nothing", "--sweep nothing does not exist"),
    ("--data.path nothing", "nothing"),
    ("--cluster.launcher mpi", "cluster.launcher is 'mpi'"),
    ("--cluster.tim 1", "cluster.tim is not an option of ClusterOptions"),
]
# Lines that need another job script than the other tasks of the array.
SWEEP_LINES = [
    ("--trainer.devices 2 --trainer.strategy ddp", "main-1: trainer.devices was 1, is 2, but the tasks of an array"),
    ("--trainer.num_nodes 2 --trainer.strategy ddp", "trainer.num_nodes was 1, is 2, but the tasks of an array"),
    ("--data.num_workers 3", "data.num_workers was 0, is 3, but the tasks of an array share"),
    ("--model.label_dropout '0.1", "sweep:2: No closing quotation; quote values as in a shell"),
    ("\x00--model \udcff", "sweep:2: write options such as"),
    ("--cluster.signal_lead 60", "cluster.signal_lead was 120, is 60, but the tasks of an array share"),
]
CASES = [("", *case) for case in WRONG_OPTIONS] + [(line, "--sweep sweep", message) for line, message in SWEEP_LINES]


@pytest.mark.parametrize(("line", "options", "message"), CASES)
def test_mistakes_are_reported_before_anything_is_written(slurm, line, options, message):
    if line:
        Path("sweep").write_bytes(f"--model.label_dropout 0.5\n{line}\n".encode("utf-8", "surrogateescape"))
    done = slurm("submit", *options.split())
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not Path("runs").exists() and not Path("calls").exists()
