"""The plan of a job, its checks, and the job script that follows from it."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import assert_user_error, write_program

from aim_lightning.cluster.job_plan import JobPlan, Task, array_indices, check, requeue_window, seconds
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.cluster.sbatch_script import directives, render

DIRECTORY = Path("runs/x/main")
PLAN = JobPlan(
    name="x/main",
    directory=DIRECTORY,
    tasks=[Task(None, "main")],
    nodes=2,
    devices=4,
    gpus=True,
    workers=1,
    options=ClusterOptions(account="lab", qos="long", constraint="a100", memory="200G", time="1-00:00:00"),
    working_directory=Path("/the/check out"),
)
MEASURED = {"longest_pause_seconds": 90.0, "step_seconds": 4.0, "checkpoint_seconds": 10.0}


def plan(**changes) -> JobPlan:
    options = {name: changes.pop(name) for name in list(changes) if name in ClusterOptions.__dataclass_fields__}
    return dataclasses.replace(PLAN, options=dataclasses.replace(PLAN.options, **options), **changes)


def test_the_directives_have_one_task_per_rank_and_every_option():
    assert set(directives(PLAN)) == {
        *("--job-name=x/main", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=3", "--time=1-00:00:00"),
        *("--account=lab", "--qos=long", "--constraint=a100", "--mem=200G", "--gpus-per-node=4", "--requeue"),
        *("--output=runs/x/main/slurm-%j.log", "--open-mode=append", "--signal=USR1@120"),
    }
    assert "--gpus-per-node=4" not in directives(plan(gpus=False))
    assert "--gres=gpu:a100:4" in directives(plan(gpu_request="--gres=gpu:a100:{gpus}"))


def test_torchrun_is_one_task_per_node_with_the_processors_of_its_ranks():
    torchrun = plan(launcher="torchrun")
    assert {"--ntasks-per-node=1", "--cpus-per-task=12"} <= set(directives(torchrun))
    text = render(torchrun)
    assert "srun --kill-on-bad-exit=1 --wait=0 --cpus-per-task=12 " in text
    assert "--nnodes=2 --nproc-per-node=4 --node-rank=$SLURM" in text and "--log-dir=/dev/null" in text


def run_job(tmp_path, site=None, **programs):
    """Run job.sbatch with small shell programs in place of those that it calls; `site` holds options of the cluster."""
    for name, body in programs.items():
        write_program(tmp_path / name, body)
    script = render(plan(**{"working_directory": tmp_path, "python": str(tmp_path / "python"), **(site or {})}))
    (tmp_path / "job.sbatch").write_text(script)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "41"}
    return subprocess.run(["bash", tmp_path / "job.sbatch"], env=env, capture_output=True, text=True, timeout=60)


REQUEUES = [
    (0, 75, False, False),  # `ended` has requeued it
    (75, 1, False, True),  # torchrun's code; `ended` read the recorded one, but has no scontrol
    (143, 143, True, True),
    (143, 143, False, False),
    *((lost, 75, False, True) for lost in (1, 126, 127)),  # no such python on this host
    (127, 138, False, True),
    (127, 143, True, True),
    (127, 143, False, False),
    (127, 1, True, False),  # a crash, without a count of starts
    (127, 2, True, False),
    (127, 0, True, False),
]


@pytest.mark.parametrize(("ended", "code", "preempted", "requeued"), REQUEUES)
def test_the_script_requeues_the_job_where_python_cannot(tmp_path, ended, code, preempted, requeued):
    """Inside a container, or with python only in srun's container; every process gets SIGTERM with the requeue."""
    when = "2026-11-24T13:26:40" if preempted else "None"
    started = 127 if ended == 127 else 0
    shows = f"case $1 in show) printf 'JobId=41\\nJobState=RUNNING Reason=None\\n PreemptTime={when}\\n';; "
    python = f'case "$*" in *ended*) kill -TERM $$; exit {ended};; *started*) exit {started};; esac'
    scontrol = f"{shows} requeue) kill -TERM $PPID $$; echo requeued $2;; esac"
    done = run_job(tmp_path, python=python, srun=f"exit {code}", scontrol=scontrol)
    assert ("requeued 41" in done.stdout) == requeued, done.stdout + done.stderr
    assert done.returncode == code
    assert ("gave no answer" in done.stdout) == (ended in (1, 126, 127))


@pytest.mark.parametrize(("code", "trains"), [(0, True), (1, True), (120, True), (2, False), (69, False)])
def test_only_a_refusal_prevents_training(tmp_path, code, trains):
    """`slurm started` may fail for a full disk, which must not end the job."""
    python = f'echo "$@"; case "$*" in *started*) exit {code};; esac'
    done = run_job(tmp_path, python=python, srun="echo srun; exit 7")
    assert ("srun" in done.stdout, "ended" in done.stdout) == (trains, trains)
    assert done.returncode == (7 if trains else code)


def test_srun_gets_the_container_of_pyxis_and_starts_python_in_it(tmp_path):
    """docs/slurm.md has these options; the python of the image does not exist on the host."""
    options = ["--container-image=REGISTRY#aim-lightning:latest", "--container-mounts=$PWD:$PWD"]
    options += ["--container-workdir=$PWD"]
    site = {"srun": options, "python": "/opt/aim/bin/python"}
    assert all(option in (ROOT / "docs/slurm.md").read_text() for option in (*options, "/opt/aim/bin/python"))
    done = run_job(tmp_path, site, srun='printf "%s\\n" "$@"; exit 5')
    words = done.stdout.splitlines()
    expected = [word.replace("$PWD", str(tmp_path)) for word in options]
    assert words[words.index(options[0]) :][:4] == [*expected, "sh"]
    assert words[words.index("-") + 1 :][:4] == ["/opt/aim/bin/python", "-m", "aim_lightning", "fit"]
    assert done.returncode == 5 and "slurm ended gave no answer (exit code 127)" in done.stdout


def test_an_array_has_one_configuration_and_one_log_per_task():
    tasks = [Task(i, f"main-{i}") for i in (3, 4)]
    text = render(plan(tasks=tasks, parallel=1))
    assert "#SBATCH --array=3,4%1" in text and "slurm-%A_%a.log" in text
    assert "config=runs/x/main/job-${SLURM_ARRAY_TASK_ID}.yaml" in text


def test_the_script_is_bash_with_the_lines_of_the_site_in_order(tmp_path):
    site = {"modules": ["cuda/13", "gcc"], "setup": ["source site.sh"], "container": "apptainer exec --nv aim.sif"}
    site |= {"environment": {"NCCL_SOCKET_IFNAME": "ib0", "WORDS": "two words"}, "srun": ["--cpu-bind=cores"]}
    text = render(plan(**site, directives=["#SBATCH --exclusive", "--mail-type=END"]))
    (tmp_path / "job.sbatch").write_text(text)
    subprocess.run(["bash", "-n", tmp_path / "job.sbatch"], check=True)
    order = ["#SBATCH --exclusive", "#SBATCH --mail-type=END", "cd '/the/check out'", "module load cuda/13 gcc"]
    order += ["source site.sh", "export NCCL_SOCKET_IFNAME=ib0", "export WORDS='two words'", "slurm started", "srun"]
    order += ["--cpu-bind=cores", 'apptainer exec --nv aim.sif "$python" -m aim_lightning fit', "slurm ended"]
    positions = [text.index(part) for part in order]
    assert positions == sorted(positions)


AGREEMENT = r"90.0 s between two batches .* 4.0 s for a step until all ranks agree, 10.0 s .*; set at least 156"
WRONG_PLANS = [
    ({"directives": ["--ntasks=3"]}, "is set by trainer.devices and trainer.num_nodes; set it there"),
    ({"directives": ["#SBATCH -N 4"]}, "is set by trainer.num_nodes"),
    ({"directives": ["--mail-type=END", " "]}, "contains an empty line"),
    ({"cpus_per_task": 1, "workers": 3}, r"cpus_per_task is 1; a rank and its 3 loader processes .* need 4"),
    ({"time": "1", "signal_lead": 60}, "leaves nothing of cluster.time"),
    (
        {"timings": MEASURED, "nodes": 1, "devices": 1},
        r"up to 90.0 s between two batches .* included\), 10.0 s for a checkpoint; set at least 150",
    ),
    ({"timings": MEASURED, "nodes": 1, "devices": 2}, AGREEMENT),  # two ranks must agree, also on one node
    ({"timings": MEASURED}, AGREEMENT),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_PLANS)
def test_a_plan_that_cannot_work_is_refused(changes, message):
    assert_user_error(message, check, plan(**changes))


def test_unknown_values_are_reported():
    assert "not measured yet" in check(PLAN)[0]
    timings = {"longest_pause_seconds": 4.0, "checkpoint_seconds": 1.0}
    assert "5.0 s were needed at most" in check(plan(timings=timings))[0]
    assert (requeue_window(20, 10), requeue_window(20, 10, step_seconds=2)) == (45, 48)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 5400), ("10:30", 630), ("1:02:03", 3723), ("2-00", 172800), ("1-02:03", 93780), ("1-02:03:04", 93784)],
)
def test_time_limits_in_slurm_formats(text, expected):
    assert seconds(text) == expected


def test_lists_of_array_indices():
    assert array_indices("0-2,7") == [0, 1, 2, 7]
    for wrong in ("", "a", "1-", "1,1", "2-1", "-1", "nan", "0-6:0", "0-99999999999"):
        assert_user_error(".", array_indices, wrong)
    assert_user_error(r"cluster.time is 'soon'", seconds, "soon")


@pytest.mark.parametrize("options", [{"signal_lead": 0}, {"hang_seconds": 0}, {"max_starts_without_progress": 0}])
def test_options_out_of_range(options):
    assert_user_error(rf"cluster\.{next(iter(options))} is 0", ClusterOptions, **options)
