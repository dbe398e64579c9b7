"""What a profile could leave behind in a process. `left_behind` finds it; a fixture asks after every test."""

from __future__ import annotations

import gc
import sys
from typing import Any


def left_behind(model: Any = None) -> list[str]:
    """Sentences about every hook, mode and setting that is not as torch sets it up; none: all is as it should be.

    Args:
        model: whose parameters should carry no hooks; None: none is asked about.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "optim"):
        return []
    found = []
    module = torch.nn.modules.module
    if torch.nn.Module.__call__ is not module.Module.__dict__["_wrapped_call_impl"]:
        found.append("Module.__call__ is replaced")
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks"):
        if getattr(module, name):
            found.append(f"torch.nn.modules.module.{name} is not empty")
    optimizer = sys.modules["torch.optim.optimizer"]
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
        if getattr(optimizer, name):
            found.append(f"torch.optim.optimizer.{name} is not empty")
    if torch.autograd._engine_run_backward is not torch.autograd.graph._engine_run_backward:
        found.append("the autograd engine's entry is replaced")
    if torch.autograd.graph.saved_tensors_hooks.__enter__.__module__ != torch.autograd.graph.__name__:
        found.append("saved_tensors_hooks.__enter__ is replaced")
    if torch.utils.swap_tensors.__module__ != torch.utils.__name__:
        found.append("torch.utils.swap_tensors is replaced")
    if torch.is_anomaly_enabled() or torch.set_anomaly_enabled is not torch._C.set_anomaly_enabled:
        found.append("anomaly detection is on, or replaced")
    if torch.fx.traceback.format_stack.__module__ != torch.fx.traceback.__name__:
        found.append("what notes nodes' stacks is replaced")
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None and dynamo.unpatched_nn_module_call is not torch.nn.Module.__call__:
        found.append("dynamo calls modules by another function")
    if torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        found.append("a dispatch mode is active")
    if torch.overrides._get_current_function_mode_stack():
        found.append("a function mode is active, such as that of torch.set_default_device")
    if torch.cuda.is_initialized():
        if torch._C._cuda_isHistoryEnabled():
            found.append("the allocator's history is on")
        metadata = getattr(torch._C, "_cuda_getMemoryMetadata", str)()  # since 2.11
        if metadata:
            found.append(f"the allocator's metadata is {metadata!r}")
    profiling = sys.modules.get("vramkit.profiling.profiler")
    if profiling is not None and profiling._measuring.active is not None:
        found.append("a profile is active")
    if not gc.isenabled():
        found.append("the garbage collector is off")
    if model is not None:
        found += [f"{name} has a hook" for name, parameter in model.named_parameters() if parameter._backward_hooks]
    return found
