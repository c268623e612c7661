"""Generation and scoring of many samples: blocks, references, records, sweeps, tables."""
