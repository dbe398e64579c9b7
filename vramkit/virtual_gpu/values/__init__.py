"""Values of tensors on a virtual device: operators are computed by the CPU's kernels, on the device's own memory.

A virtual device's memory is this process's memory, so an operator's CPU kernel can write what the device would have
written. README.md beside this file says how, and what is computed.
"""
