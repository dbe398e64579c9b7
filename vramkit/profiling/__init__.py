"""The sources of tapes: the CUDA allocator's history, storage lifetimes under a dispatch mode; and their marks."""
