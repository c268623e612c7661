"""The run directory: its files, its lease, and the decision to start, continue or refuse training."""
