"""``torch._dynamo`` left out of a process, and coming when it is wanted. Each in a process of its own."""

from __future__ import annotations

from subprocesses import run_python

BEGIN = """
import inspect
import sys
import torch
from vramkit.torch_internals import dynamo

dynamo.keep_away()
model = torch.nn.Linear(3, 3)
optimizer = torch.optim.AdamW(model.parameters())

def train():
    optimizer.zero_grad()
    torch.utils.checkpoint.checkpoint(model, torch.ones(2, 3), use_reentrant=True)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()

train()
inspect.getmodule(train)  # which asks every module for its file
assert not dynamo.has_come()
assert not [name for name in sys.modules if name.startswith("torch._dynamo.")]
"""


def check(code: str) -> None:
    assert run_python(f"{BEGIN}\n{code}\nprint('DONE')").endswith("DONE\n")


def test_training_steps_do_without_it() -> None:
    check("train()\nassert not dynamo.has_come()")


WANTING = (
    "import torch._dynamo.utils",
    "import torch._dynamo.config",  # which takes no attributes but its settings
    "from torch._dynamo import config",
    "torch._dynamo.reset()",
    "assert torch.compile(lambda x: x + 1, backend='eager')(torch.zeros(1)) == 1",
)


def test_it_comes_whole_and_once_when_it_is_wanted() -> None:
    came = """
assert dynamo.has_come()
import torch._dynamo
assert torch._dynamo is sys.modules["torch._dynamo"] is dynamo.come()
loaded = {name: each for name, each in sys.modules.items() if name.startswith("torch._dynamo.")}
for name, module in loaded.items():
    assert module.__spec__.name == name and module.__spec__.loader.path == module.__file__, name
assert torch._dynamo.eval_frame.config is torch._dynamo.config is loaded["torch._dynamo.config"]
assert torch._dynamo.convert_frame.counters is torch._dynamo.utils.counters is loaded["torch._dynamo.utils"].counters
"""
    check(f"""
import os, traceback
for wanting in {WANTING!r}:
    if (child := os.fork()) == 0:  # a process that has imported torch alone, for each
        status = 1
        try:
            exec(wanting + {came!r}, globals())
            status = 0
        except BaseException:
            print(wanting)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, wanting
""")


def test_what_was_not_to_be_compiled_is_not_compiled_once_it_has_come() -> None:
    check("""
looked_at = []

def backend(graph, inputs):
    looked_at.append(graph)
    return graph

step = torch.compile(lambda: optimizer.zero_grad(), backend=backend)
step()
inner = type(optimizer).add_param_group.__closure__
functions = [cell.cell_contents for cell in inner if callable(cell.cell_contents)]
assert [each for each in functions if "__dynamo_disable" in vars(each)] == []
train()
optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
assert all(vars(each)["__dynamo_disable"] is not each for each in functions)
""")
