"""The autoregressive Mamba-2 network."""
