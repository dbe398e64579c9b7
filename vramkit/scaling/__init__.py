"""A program's memory at batch sizes that were not run, from the tapes of a few that were."""
