"""Runs verbs in a torch that lacks names: a process that has imported torch, and a fork of it for each request.

`python hiding.py [card]` reads a line of JSON for each request: a verb, and the paths of names to hide. It answers with
one: "peak", or "error" (its type) and "text"; and "ran": whether any of the user's code did.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

RAN = "THE_USERS_CODE_RAN"


def serve() -> None:
    if len(sys.argv) > 1:
        from vramkit import virtual_gpu

        virtual_gpu.activate(sys.argv[1])
    import cloudpickle
    import torch
    import torch._dynamo  # the fake engine's overlay imports it, and every fork would again

    for name in ("attribution.categories", "batch_size.result", "estimation.result", "loading", "snapshots.trace"):
        import_module(f"vramkit.{name}")  # what needs no torch
    del cloudpickle, torch
    assert "vramkit.torch_internals.names" not in sys.modules, "names are looked up in the forks"
    for line in sys.stdin:
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                answer = _answer(**json.loads(line))
                with open(sink, "w") as file:
                    json.dump(answer, file)
            finally:
                os._exit(0)
        os.close(sink)
        with open(source) as file:
            content = file.read()
        os.waitpid(child, 0)
        print(content or json.dumps({"error": "crash", "text": "the fork ended without an answer"}), flush=True)


def _answer(verb: str, hidden: list[str]) -> dict[str, Any]:
    from vramkit.torch_internals import names

    find = names.find

    def found(path: str, probe: Any) -> Any:
        if path in hidden:
            raise AttributeError(path)
        return find(path, probe)

    names.find = found
    try:
        return {"peak": _VERBS[verb](), "ran": RAN in os.environ}
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error), "ran": RAN in os.environ}


def _program(device: str) -> Any:
    import torch

    class Net(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            os.environ[RAN] = "1"
            return super().forward(x)

    torch.manual_seed(0)
    model = Net(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = torch.zeros(32, 64, device=device), torch.zeros(32, dtype=torch.int64, device=device)
    return model, optimizer, batch


def _loss(output: Any, batch: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(output, batch[1])


def _profile(device: str) -> int:
    import vramkit

    model, optimizer, batch = _program(device)
    with vramkit.profile(model, optimizer, device=device) as measuring:
        for _ in range(2):
            _loss(model(batch[0]), batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    return measuring.result.peak_allocated


def _estimate(engine: str) -> int:
    import vramkit

    model, optimizer, batch = _program("cpu")
    return vramkit.estimate(
        model, batch, optimizer=optimizer, loss=_loss, engine=engine, gpu="a100-40gb"
    ).peak_allocated


def _batch_size() -> int:
    import torch

    import vramkit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, optimizer, batch = _program(device)
    found = vramkit.auto_batch_size(model, batch, optimizer=optimizer, loss=_loss, max_batch_size=64)
    return int(found)


def _run(*more: str) -> int:
    from argparse import ArgumentParser
    from contextlib import redirect_stdout
    from io import StringIO
    from tempfile import TemporaryDirectory

    from vramkit.cli import run

    parser = ArgumentParser()
    run.add_to(parser.add_subparsers())
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()) as told:
        script = os.path.join(folder, "train.py")
        with open(script, "w") as file:
            file.write(f"import os, torch\nos.environ[{RAN!r}] = '1'\nkept = torch.ones(1000, device='cuda')\n")
        options = parser.parse_args(["run", "--gpu", "a100-40gb", *more, "--json", "-", script])
        options.main(options)
    [process] = json.loads(told.getvalue())["processes"]
    return int(process["result"]["devices"][0]["peak_allocated"])


def _closed_forms() -> int:
    import torch

    from vramkit import closed_form

    model, _, batch = _program("cpu")
    return closed_form.optimizer_state(torch.optim.AdamW, model) + closed_form.inputs(batch)


_VERBS: dict[str, Any] = {
    "profile on the CPU": lambda: _profile("cpu"),
    "profile on CUDA": lambda: _profile("cuda"),
    "estimate on fakes": lambda: _estimate("fake"),
    "estimate on the virtual GPU": lambda: _estimate("virtual"),
    "auto_batch_size": _batch_size,
    "closed forms": _closed_forms,
    "run": _run,
    "run a rank": lambda: _run("--world-size", "2", "--gpus-per-node", "1"),
}


if __name__ == "__main__":
    serve()
