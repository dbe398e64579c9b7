"""How large a batch fits: tapes of small batches, what they say of large ones, and the runs that verify it."""
