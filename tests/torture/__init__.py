"""Kills trainings at every moment one can think of and compares them with one that was left alone."""
