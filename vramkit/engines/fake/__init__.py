"""The fake engine: the user's step on tensors without values, made to behave as CUDA. Only its parts know anything."""
