"""The discriminator of adversarial tokenizer training."""
