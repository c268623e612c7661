"""SLURM: signals, job scripts, requeueing, checks. Nothing of Lightning's; most of it imports no torch either."""
