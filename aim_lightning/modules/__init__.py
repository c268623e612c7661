"""LightningModules of both stages and their parts: optimizer, adversarial training, codebook, validation metrics."""
