"""Steps of the `slurm` command."""
