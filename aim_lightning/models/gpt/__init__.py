"""A decoder-only transformer, the baseline that AiM is compared with."""
