"""Where a PyTorch training step's GPU memory goes, to the byte.

``import vramkit`` loads neither torch nor numpy: every name is imported when it is first used, so that the virtual
GPU can be switched on before torch is there.
"""

from __future__ import annotations

import importlib
import sys
from types import FunctionType
from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    # For type checkers, which don't see what `__getattr__` does; tests hold that both know the same names.
    from . import closed_form as closed_form
    from . import errors as errors
    from . import gpus as gpus
    from . import models as models
    from . import virtual_gpu as virtual_gpu
    from .allocator import AddressSpace as AddressSpace
    from .allocator import AllocatorConf as AllocatorConf
    from .allocator import Block as Block
    from .allocator import BlockState as BlockState
    from .allocator import CachingAllocator as CachingAllocator
    from .allocator import Replay as Replay
    from .allocator import SegmentState as SegmentState
    from .allocator import SimulatedOutOfMemory as SimulatedOutOfMemory
    from .batch_size.auto import auto_batch_size as auto_batch_size
    from .batch_size.fit import fit_batch_size as fit_batch_size
    from .batch_size.result import BatchSizeResult as BatchSizeResult
    from .batch_size.trial import Accumulation as Accumulation
    from .batch_size.trial import Trial as Trial
    from .comparison.result import Comparison as Comparison
    from .comparison.result import compare as compare
    from .comparison.rows import Difference as Difference
    from .comparison.rows import ModuleDifference as ModuleDifference
    from .comparison.rows import StepDifference as StepDifference
    from .comparison.rows import TensorDifference as TensorDifference
    from .engines import EngineName as EngineName
    from .errors import DeviceError as DeviceError
    from .errors import DoesNotFit as DoesNotFit
    from .errors import SnapshotError as SnapshotError
    from .errors import UsageError as UsageError
    from .errors import VramkitError as VramkitError
    from .estimation.estimate import estimate as estimate
    from .estimation.lengths import LengthCourse as LengthCourse
    from .estimation.lengths import LengthReplay as LengthReplay
    from .estimation.lengths import replay_lengths as replay_lengths
    from .estimation.result import Estimate as Estimate
    from .gpus import GPU as GPU
    from .gpus.nccl import NCCL as NCCL
    from .layers.result import Summary as Summary
    from .layers.rows import LayerRow as LayerRow
    from .layers.summary import summary as summary
    from .loading import load as load
    from .planning.changes import LeftOut as LeftOut
    from .planning.plan import plan as plan
    from .planning.result import Plan as Plan
    from .planning.variant import Variant as Variant
    from .profiling.profiler import profile as profile
    from .programs.batches import Fixed as Fixed
    from .programs.batches import fixed as fixed
    from .programs.objects import Models as Models
    from .programs.objects import OptimizerOrFactory as OptimizerOrFactory
    from .programs.objects import Optimizers as Optimizers
    from .programs.parallel import DDP as DDP
    from .programs.parallel import FSDP as FSDP
    from .programs.parallel import Parallel as Parallel
    from .results.profile import Profile as Profile
    from .results.readable import ReadableResult as ReadableResult
    from .scaling.rows import BatchSizeRow as BatchSizeRow
    from .snapshots.opening import open_snapshot as open_snapshot
    from .tape.breakdown import Breakdown as Breakdown
    from .tape.events import Action as Action
    from .tape.events import Category as Category
    from .tape.events import Evaluation as Evaluation
    from .tape.events import Module as Module
    from .tape.events import Phase as Phase
    from .tape.events import Tape as Tape
    from .tape.memory import MemoryResult as MemoryResult
    from .tape.memory import OutOfMemory as OutOfMemory
    from .tape.stacks import Frame as Frame
    from .tape.stacks import Stacks as Stacks
    from .tape.stacks import Whose as Whose
    from .tape.timeline import Timeline as Timeline
    from .tape.usage import ModulePhase as ModulePhase
    from .tape.usage import ModuleUsage as ModuleUsage
    from .tape.usage import PhaseUsage as PhaseUsage
    from .tape.usage import StepUsage as StepUsage

_MODULES = ("closed_form", "errors", "gpus", "models", "virtual_gpu")
_HOMES = {
    # measured, and read again
    "profile": "profiling.profiler",
    "Profile": "results.profile",
    "load": "loading",
    "open_snapshot": "snapshots.opening",
    # predicted
    "estimate": "estimation.estimate",
    "Estimate": "estimation.result",
    "replay_lengths": "estimation.lengths",
    "LengthReplay": "estimation.lengths",
    "LengthCourse": "estimation.lengths",
    "BatchSizeRow": "scaling.rows",
    "EngineName": "engines",
    "GPU": "gpus",
    "summary": "layers.summary",
    "Summary": "layers.result",
    "LayerRow": "layers.rows",
    # what to change so that it fits
    "plan": "planning.plan",
    "Plan": "planning.result",
    "Variant": "planning.variant",
    "LeftOut": "planning.changes",
    # how large a batch fits
    "auto_batch_size": "batch_size.auto",
    "fit_batch_size": "batch_size.fit",
    "BatchSizeResult": "batch_size.result",
    "Accumulation": "batch_size.trial",
    "Trial": "batch_size.trial",
    # compared
    "compare": "comparison.result",
    "Comparison": "comparison.result",
    "Difference": "comparison.rows",
    "ModuleDifference": "comparison.rows",
    "StepDifference": "comparison.rows",
    "TensorDifference": "comparison.rows",
    # what the verbs are given
    "Models": "programs.objects",
    "OptimizerOrFactory": "programs.objects",
    "Optimizers": "programs.objects",
    "Fixed": "programs.batches",
    "fixed": "programs.batches",
    "DDP": "programs.parallel",
    "FSDP": "programs.parallel",
    "Parallel": "programs.parallel",
    # what results are made of
    "MemoryResult": "tape.memory",
    "NCCL": "gpus.nccl",
    "ReadableResult": "results.readable",
    "OutOfMemory": "tape.memory",
    "Breakdown": "tape.breakdown",
    "Timeline": "tape.timeline",
    "ModulePhase": "tape.usage",
    "ModuleUsage": "tape.usage",
    "PhaseUsage": "tape.usage",
    "StepUsage": "tape.usage",
    "Action": "tape.events",
    "Category": "tape.events",
    "Evaluation": "tape.events",
    "Module": "tape.events",
    "Phase": "tape.events",
    "Tape": "tape.events",
    "Frame": "tape.stacks",
    "Stacks": "tape.stacks",
    "Whose": "tape.stacks",
    # the simulated allocator
    "CachingAllocator": "allocator",
    "AddressSpace": "allocator",
    "AllocatorConf": "allocator",
    "Block": "allocator",
    "BlockState": "allocator",
    "Replay": "allocator",
    "SegmentState": "allocator",
    "SimulatedOutOfMemory": "allocator",
    # errors
    "DeviceError": "errors",
    "DoesNotFit": "errors",
    "SnapshotError": "errors",
    "UsageError": "errors",
    "VramkitError": "errors",
}


if not TYPE_CHECKING:  # checkers read the imports above; from this they would take a misspelt name for one, too
    __all__ = [*_HOMES, *_MODULES]

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            value = importlib.import_module(f"{__name__}.{name}")
        elif name in _HOMES:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _let_them_say_where_they_are()
        return value


def load_ipython_extension(shell: object) -> None:
    """What ``%load_ext vramkit`` calls: the magic ``%%vram``."""
    from .integrations.notebook import register

    register(shell)


def _let_them_say_where_they_are() -> None:
    """Every public class and function that was imported by now names the module in which its users find it.

    So it is shown and pickled under a name that stays when a file is moved. The cost, as in other packages that do
    this: ``inspect.getsource`` looks for a class in the file of the module that it names.
    """
    for each in _MODULES:
        if module := sys.modules.get(f"{__name__}.{each}"):
            for name in getattr(module, "__all__", ()):
                _say_where(vars(module).get(name), module.__name__)
    for name, home in _HOMES.items():  # last: some are in both
        if module := sys.modules.get(f"{__name__}.{home}"):
            _say_where(vars(module).get(name), __name__)


def _say_where(value: object, module: str) -> None:
    if isinstance(value, (type, FunctionType)):
        value.__module__ = module


def __dir__() -> list[str]:
    return [*globals(), *_HOMES, *_MODULES]
