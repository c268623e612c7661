"""Commands of `aim-lightning`, one file each."""
