"""``vramkit.fit_batch_size``: calls a function of the batch size until one fits. Knows how to call it, to stop it early
and to measure it; which size comes next, ``Descent`` works out.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, overload

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from ..counts import check_count
from ..errors import DoesNotFit, UsageError
from ..out_of_memory import clean_up, forget, is_out_of_memory
from ..torch_internals import dynamo
from .device_memory import needed, read_gauges
from .next_size import Descent
from .trial import Trial

_T = TypeVar("_T")
_OnTrial = Callable[[Trial], object]

_ASKED = "vramkit.fit_batch_size was called"
_COMPILES_ANEW = (
    "torch.compile compiles what is called anew for a second batch size; what it makes then may serve sizes that vary "
    "(dynamic=False, or a model that each call makes: each size is compiled)"
)
_STEPS = 2
"""The first step of a function makes its optimizer's state; the second one has it from its beginning."""


@overload
def fit_batch_size(function: Callable[..., _T], /) -> Callable[..., _T]: ...


@overload
def fit_batch_size(
    *,
    starting_batch_size: int = ...,
    min_batch_size: int = ...,
    multiple_of: int = ...,
    on_trial: _OnTrial | None = ...,
) -> Callable[[Callable[..., _T]], Callable[..., _T]]: ...


def fit_batch_size(
    function: Callable[..., _T] | None = None,
    /,
    *,
    starting_batch_size: int = 128,
    min_batch_size: int = 1,
    multiple_of: int = 1,
    on_trial: _OnTrial | None = None,
) -> Callable[..., Any]:
    """Call a function with the largest batch size with which it does not run out of memory.

    ::

        @vramkit.fit_batch_size(starting_batch_size=1024)
        def train(batch_size, epochs):
            model, loader = build(batch_size)       # everything is made inside, so that it can be made again
            ...

        train(epochs=3)                             # without the batch size

    The function is called with ``starting_batch_size``. If it ends, that was all. If memory runs out and it trains, it
    is called with smaller sizes and stopped after its second ``optimizer.step()``, by an exception that
    ``except Exception`` does not catch; what these calls took says which size fits, and that one is called next. So
    there is one failure as a rule, and not one for every tenth, whatever the size to start from. A function without an
    optimizer can't be stopped so: after a failure its size is what the failure calls for, or a tenth smaller. One that
    takes a single step, or catches every exception, ends by itself at a size that is only measured: it is called again
    with a larger one, and what counts is the last call.

    Args:
        function: takes ``batch_size`` as its first argument (of a method: after ``self``). Whatever it makes should be
            its own: what it leaves elsewhere stays when it is called again, which may be after a call that ended.
        starting_batch_size: where to begin; no larger size is called.
        min_batch_size: no smaller size is called.
        multiple_of: only multiples of this are called.
        on_trial: called with a `Trial` after every call; one that was only to be measured is a probe.

    Returns:
        The function without its first argument. It returns what the last call returns.

    Raises:
        UsageError: the function does not take ``batch_size`` first, or runs only later (a generator, a coroutine), or
            a size can't be. When it is called: with a batch size.
        DoesNotFit: when it is called: memory runs out at the smallest size too. The cause is what ran out.

    Known limitations: torch's peak statistics begin anew with every call. Ranks that train together may find different
    sizes; use ``vramkit.auto_batch_size(..., group=...)`` there. What the function needs only after its second step,
    for an evaluation say, is not measured: where that is more, a call fails late, and the next one gets less.
    What ``torch.compile`` compiles in the first call is compiled anew in the second, and a warning says so.
    """
    starting_batch_size = check_count(_ASKED, "starting_batch_size", starting_batch_size)
    min_batch_size = check_count(_ASKED, "min_batch_size", min_batch_size)
    multiple_of = check_count(_ASKED, "multiple_of", multiple_of)
    if Descent(starting_batch_size, min_batch_size, multiple_of).is_over:
        raise UsageError(
            _ASKED,
            f"with starting_batch_size={starting_batch_size}, min_batch_size={min_batch_size} and "
            f"multiple_of={multiple_of}",
            "No size is at most the first, at least the second and a multiple of the third",
            "Start from a larger size",
        )

    def decorate(function: Callable[..., _T]) -> Callable[..., _T]:
        signature, position = _examined(function)

        @functools.wraps(function)
        def with_what_fits(*args: Any, **kwargs: Any) -> _T:
            _check_call(function, signature, position, args, kwargs)
            calls = _Calls(
                lambda size: function(*args[:position], size, *args[position:], **kwargs),
                Descent(starting_batch_size, min_batch_size, multiple_of),
                on_trial,
            )
            return calls.until_one_ends(_name(function))

        with_what_fits.__signature__ = _without(signature, position)  # type: ignore[attr-defined] # inspect's protocol
        return with_what_fits

    return decorate if function is None else decorate(function)


# -- the calls ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ended(Generic[_T]):
    value: _T


class _Enough(BaseException):
    """Ends a call that was to be measured."""


@dataclass
class _Calls(Generic[_T]):
    """The calls of a function, one size after another."""

    call: Callable[[int], _T]
    descent: Descent
    on_trial: _OnTrial | None
    trains: bool = False
    compiles: bool | None = None  # whether the first call did; None: it is still to come

    def until_one_ends(self, name: str) -> _T:
        """What the function returns.

        Raises:
            DoesNotFit: it never does.
        """
        size, stops = self.descent.first, False
        while True:
            outcome = self._try(size, stops)
            if isinstance(outcome, _Ended):
                return outcome.value
            if self.descent.is_over:
                raise DoesNotFit(
                    f"{name} was called with the largest batch size that fits",
                    f"with batch_size={size}, the smallest that is allowed, it runs out of memory too",
                    instead="Make the model or a row smaller, or take a device with more memory",
                ) from outcome
            gauges = read_gauges()
            size, stops = self.descent.next(
                stoppable=self.trains,
                capacity={gauge.device: gauge.capacity for gauge in gauges},
                base={gauge.device: gauge.reserved for gauge in gauges},
            )

    def _try(self, size: int, stops: bool) -> _Ended[_T] | BaseException:
        """What one call returned, or the error that ended it.

        Warns: UserWarning: what was compiled in the first call is about to be compiled in the second.
        """
        if self.compiles:
            warnings.warn(_COMPILES_ANEW, stacklevel=4)
        compiled = dynamo.compilations()
        outcome: _Ended[_T] | BaseException
        before = sum(gauge.retries for gauge in read_gauges(fresh=True))
        start = time.perf_counter()
        enough = _Enough()
        try:
            with _stopping_with(enough) if stops else nullcontext():
                outcome = _Ended(self.call(size))
            if stops:
                # It ended before its second step, or caught what should have stopped it: it is measured all the same,
                # and what it returned is for a size that was chosen to be too small.
                outcome = enough
        except BaseException as error:
            if error is not enough and not is_out_of_memory(error) and not _is_the_hosts(error):
                raise
            outcome = error
        self.compiles = self.compiles is None and dynamo.compilations() > compiled  # it is said once
        gauges = read_gauges()
        ran_out = isinstance(outcome, BaseException) and outcome is not enough
        retries = max(0, sum(gauge.retries for gauge in gauges) - before - ran_out)  # the failure was one itself
        if isinstance(outcome, BaseException):
            # Now that the except block is left: until then the error holds the frames that it went through.
            self.trains = self.trains or _trains(outcome)
            forget(outcome)
            clean_up()
            if ran_out or retries:
                self.descent.ran_out(size, needed(gauges, outcome), stopped=stops)
            else:
                self.descent.fitted(size, {gauge.device: gauge.peak_reserved for gauge in gauges})
        if self.on_trial is not None:
            fullest = max(gauges, key=lambda gauge: gauge.peak_reserved, default=None)
            self.on_trial(
                Trial(
                    batch_size=size,
                    fits=not ran_out and not retries,
                    peak_allocated=fullest.peak_allocated if fullest else 0,
                    peak_reserved=fullest.peak_reserved if fullest else 0,
                    seconds=time.perf_counter() - start,
                    is_probe=stops,
                    ran_out=ran_out,
                    retries=retries,
                )
            )
        return outcome


@contextmanager
def _stopping_with(enough: _Enough) -> Iterator[None]:
    """Raise in this thread, once every optimizer that took a step has taken two."""
    steps: dict[int, int] = {}
    thread = threading.get_ident()

    def count(optimizer: Optimizer, args: object, kwargs: object) -> None:
        if threading.get_ident() != thread:
            return
        steps[id(optimizer)] = steps.get(id(optimizer), 0) + 1
        if min(steps.values()) == _STEPS == steps[id(optimizer)]:
            raise enough

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _trains(error: BaseException) -> bool:
    """Whether a frame that an error went through has an optimizer at hand: in a variable, or in an object there."""
    traceback = error.__traceback__
    while traceback is not None:
        for value in [*traceback.tb_frame.f_locals.values()]:
            parts = value if isinstance(value, (list, tuple)) else [value, *getattr(value, "__dict__", {}).values()]
            for part in islice(parts, _MAX_PARTS):
                several = part if isinstance(part, (list, tuple)) else [part]
                if any(issubclass(type(each), Optimizer) for each in islice(several, _MAX_PARTS)):
                    return True
        traceback = traceback.tb_next
    return False


_MAX_PARTS = 100  # of an object; whoever has more is no trainer


def _is_the_hosts(error: BaseException) -> bool:
    """Whether the memory of the host ran out: without a GPU a smaller batch helps there too."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


# -- the function ------------------------------------------------------------------------------------------------------


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _examined(function: Callable[..., object]) -> tuple[inspect.Signature, int]:
    """A function's signature, and how many arguments come before the batch size: of a method, one."""
    if isinstance(function, (staticmethod, classmethod)) or not callable(function):
        raise UsageError(
            "vramkit.fit_batch_size was put on",
            f"{type(function).__name__} {function!r:.60}",
            "It takes a function",
            "Put it below @staticmethod or @classmethod, next to the function"
            if isinstance(function, (staticmethod, classmethod))
            else "Write @vramkit.fit_batch_size(starting_batch_size=...) with the name of the argument",
        )
    if any(kind(function) for kind in _LATER):
        raise UsageError(
            f"vramkit.fit_batch_size was put on {_name(function)}",
            "it is a generator or a coroutine",
            "Its body runs when the call is over, and so would be its running out of memory",
            "Put it on a function that does the training and returns",
        )
    signature = inspect.signature(function)
    names = [name for name, each in signature.parameters.items() if each.kind in _POSITIONAL]
    position = 1 if names[:1] in (["self"], ["cls"]) else 0
    if names[position : position + 1] != ["batch_size"]:
        raise UsageError(
            f"vramkit.fit_batch_size was put on {_name(function)}{signature}",
            "its first argument is not batch_size",
            "It is called with the size that is to be tried as its first argument",
            f"Write def {_name(function).rpartition('.')[2]}({'self, ' * position}batch_size, ...)",
        )
    return signature, position


_LATER = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _without(signature: inspect.Signature, position: int) -> inspect.Signature:
    rest = [each for number, each in enumerate(signature.parameters.values()) if number != position]
    return signature.replace(parameters=rest)


def _check_call(
    function: Callable[..., object],
    signature: inspect.Signature,
    position: int,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> None:
    """Arguments that the function can't be called with are reported before it is called once."""
    try:
        signature.bind(*args[:position], 0, *args[position:], **kwargs)
    except TypeError as error:
        if "batch_size" not in kwargs and not _binds(signature, args, kwargs):
            raise TypeError(f"{_name(function)}() {error}") from None
        raise UsageError(
            f"{_name(function)} was called",
            "with a batch size",
            "vramkit.fit_batch_size finds it, and passes it as the first argument",
            "Leave it out of the call; where to begin goes into the decorator: starting_batch_size=",
        ) from None


def _binds(signature: inspect.Signature, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
