"""The everyday part of SLURM: a requeued run on two nodes, a cancelled one, a refused one, a warning at start-up."""


def case_a_warning_requeues_and_the_run_is_the_same_to_the_bit(cluster):
    """Two nodes, and a loader process that gets the signal as well."""
    run = cluster.submit("warned", "--data.num_workers", 1, "--cluster.cpus_per_task", 2, nodes=2)
    run.reaches("batch", 5)
    run.send("USR1")
    return run, run.ends(), cluster.reference(2)


def test_a_warning_requeues_and_the_run_is_the_same_to_the_bit(case):
    run, facts, reference = case
    assert facts.restarts == 1
    stopped = int(run.matches(r"SIGUSR1: stopping before the next batch, at step (\d+)")[1])
    run.says(f"step {stopped} is in a checkpoint; job {run.job} is requeued: its time runs out (SIGUSR1)")
    run.says(f"training from step {stopped} ")
    run.matches(r"first batch [\d.]+ s after the stop; [\d.]+ s of them since this process started")
    steps = [step for _, phase, step, *_ in run.trace() if phase == "batch"]
    assert steps == [*range(stopped), *range(stopped, 22)]  # no step of the first start was lost
    run.is_like(reference)


def case_a_cancelled_job_does_not_come_back(cluster):
    run = cluster.submit("cancelled")
    run.reaches("batch", 3)
    return run, cluster.aim("slurm", "cancel", "--run", "cancelled"), run.ends("CANCELLED")


def test_a_cancelled_job_does_not_come_back(case):
    run, text, facts = case
    assert f"job {run.job} is cancelled and will not come back" in text and facts.restarts == 0
    run.until(
        lambda: f"is not requeued by itself: it was cancelled; to go on: sbatch {run.directory}/job.sbatch" in run.log
    )
    stopped = int(run.matches(r"SIGTERM: stopping before the next batch, at step (\d+)")[1])
    assert (run.directory / "checkpoints" / f"step={stopped:08d}.ckpt").exists()
    assert not (run.directory / "lease.json").exists()


def case_a_requeue_that_is_refused(cluster):
    run = cluster.submit("refused")
    run.reaches("batch", 2)
    cluster.sh("scontrol", "update", f"jobid={run.job}", "requeue=0")
    run.send("USR1")
    return run, run.ends("FAILED"), cluster.aim("slurm", "status", "--run", "refused")


def test_a_requeue_that_is_refused(case):
    run, facts, status = case
    words = (
        f"SLURM did not requeue job {run.job}: it was submitted with --no-requeue; the checkpoint is kept, submit again"
    )
    assert f"job {run.job}: FAILED" in status and facts.restarts == 0
    run.says(words)
    step = int(run.matches(r"step (\d+) is in a checkpoint")[1])
    assert f"step {step}, saved" in status


def case_a_signal_while_python_is_still_importing(cluster):
    run = cluster.submit("early")
    run.until(run.processes)
    run.send("USR1")
    return run, run.ends(), cluster.reference(1)


def test_a_signal_while_python_is_still_importing(case):
    run, facts, reference = case
    assert facts.restarts == 1
    run.says("SIGUSR1: stopping before the next batch, at step 0")
    run.is_like(reference)
