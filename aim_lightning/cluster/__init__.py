"""SLURM jobs: signals, job scripts, requeueing and checks, without Lightning and torch."""
