"""Callbacks that log curves, histograms and images."""
