"""The run directory: what is in it, who may write to it, what training does with it."""
