"""The VQ tokenizer."""
