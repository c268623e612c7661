"""Drawing many samples and scoring them: blocks, references, records, sweeps, tables."""
