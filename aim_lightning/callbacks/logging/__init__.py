"""Callbacks that write to loggers: images, histograms, the TensorBoard page, and training speed."""
