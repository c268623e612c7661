"""Common cases on SLURM: a requeued run on two nodes, a cancelled run, a refused requeue, a signal at start-up."""


def case_a_warning_requeues_and_the_run_is_the_same_to_the_bit(cluster):
    """Use two nodes, and a loader process that gets the signal too."""
    run = cluster.submit("warned", "--data.num_workers", 1, "--cluster.cpus_per_task", 2, nodes=2)
    return run.interrupt("batch", 5)


def test_a_warning_requeues_and_the_run_is_the_same_to_the_bit(case):
    stopped = int(case.match(r"SIGUSR1: stopping before the next batch, at step (\d+)")[1])
    end = f"step {stopped} is in a checkpoint; job {case.job} is requeued: its time runs out (SIGUSR1)"
    case.assert_logged(end, f"training from step {stopped} ")
    case.match(r"first batch [\d.]+ s after the stop; [\d.]+ s of them since this process started")
    steps = [step for _, phase, step, *_ in case.trace() if phase == "batch"]
    assert steps == [*range(stopped), *range(stopped, 22)]  # no step of the first start was lost
    case.assert_equals_uninterrupted()


def case_a_cancelled_job_is_not_requeued(cluster):
    run = cluster.submit("cancelled")
    run.reaches("batch", 3)
    return cluster.aim("slurm", "cancel", "--run", "cancelled"), run.ends("CANCELLED")


def test_a_cancelled_job_is_not_requeued(case):
    text, run = case
    assert f"job {run.job} is cancelled and will not be requeued" in text and run.restarts == 0
    message = f"is not requeued by itself: it was cancelled; to go on: sbatch {run.directory}/job.sbatch"
    run.until(lambda: message in run.log)
    stopped = int(run.match(r"SIGTERM: stopping before the next batch, at step (\d+)")[1])
    assert (run.directory / "checkpoints" / f"step={stopped:08d}.ckpt").exists()
    assert not (run.directory / "lease.json").exists()


def case_a_requeue_that_is_refused(cluster):
    run = cluster.submit("refused")
    run.reaches("batch", 2)
    cluster.sh("scontrol", "update", f"jobid={run.job}", "requeue=0")
    return run.interrupt("batch", 2, state="FAILED"), cluster.aim("slurm", "status", "--run", "refused")


def test_a_requeue_that_is_refused(case):
    run, status = case
    assert f"job {run.job}: FAILED" in status and run.restarts == 0
    reason = "it was submitted with --no-requeue; the checkpoint is kept, submit again"
    run.assert_logged(f"SLURM did not requeue job {run.job}: {reason}")
    step = run.match(r"step (\d+) is in a checkpoint")[1]
    assert f"step {step}, saved" in status


def case_a_signal_while_python_is_still_importing(cluster):
    run = cluster.submit("early")
    run.until(run.processes)
    run.send("USR1")
    return run.ends()


def test_a_signal_while_python_is_still_importing(case):
    case.assert_logged("SIGUSR1: stopping before the next batch, at step 0")
    case.assert_equals_uninterrupted()
