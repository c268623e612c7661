"""Scores of images: Fréchet distances and class agreement on the features of frozen networks."""
