"""Models and optimizers that accelerate or Fabric has prepared, in the verbs: as their own training takes."""

from __future__ import annotations

import pytest
from frameworks import missing
from subprocesses import run_on

PREPARED = """
    import gc, warnings, torch, vramkit
    warnings.simplefilter("ignore")

    def made():
        model = torch.nn.Sequential(torch.nn.Linear(256, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 10))
        return model, torch.optim.AdamW(model.parameters())

    batch = (torch.zeros(512, 256, device="cuda"), torch.zeros(512, dtype=torch.long, device="cuda"))

    def tried(model, optimizer, backward):
        def step(batch):
            x, y = batch
            backward(torch.nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()

        estimate = vramkit.estimate(model, batch, optimizer=optimizer, step=step, gpu="1 GiB")
        found = vramkit.auto_batch_size(model, batch, optimizer=optimizer, step=step, max_batch_size=4096)
        gc.collect()
        torch.cuda.empty_cache()
        with vramkit.profile(model, optimizer) as prof:
            for _ in range(3):
                step(batch)
        measured = prof.result
        return {
            "reserved": [estimate.peak_reserved, measured.peak_reserved], "found": found.batch_size,
            "modules": [[module.name for module in each.tape.modules] for each in (estimate, measured)],
            "parts": [[each.peak.parameters, each.peak.gradients, each.final.optimizer_state, each.peak.activations]
                      for each in (estimate, measured)],
        }
"""


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("package", "prepare"),
    [
        (
            "accelerate",
            """
    from accelerate import Accelerator
    accelerator = Accelerator(mixed_precision="fp16")
    result = tried(*accelerator.prepare(*made()), accelerator.backward)
    """,
        ),
        (
            "lightning",
            """
    from lightning.fabric import Fabric
    fabric = Fabric(accelerator="cuda", devices=1, precision="16-mixed")
    result = tried(*fabric.setup(*made()), fabric.backward)
    """,
        ),
    ],
)
def test_a_prepared_program_is_predicted_searched_and_measured(package: str, prepare: str) -> None:
    if missing(package):
        pytest.skip(missing(package))

    found = run_on("1 GiB", PREPARED + prepare)

    predicted, measured = found["reserved"]
    assert predicted == measured
    assert found["parts"][0] == found["parts"][1]
    assert all(found["parts"][0])
    assert found["found"] == 4096
    assert found["modules"] == [["Sequential", "Sequential.0", "Sequential.1", "Sequential.2"]] * 2
