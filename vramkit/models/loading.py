"""``vramkit.models.load``: which library a name belongs to. Knows names and options; each library has its own file."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..programs.functions import arguments_from
from .loaded import Loaded, as_loaded
from .recipe import OPTIONS, Dtype, Precision, Quantization, Recipe

SOURCES = ("hf", "timm", "torchvision")
"""What stands before the colon of a model's name."""


def is_named(name: str) -> bool:
    """Whether a name is a model's, and not MODULE:FUNCTION."""
    return name.partition(":")[0] in SOURCES and ":" in name


def load(
    name: str,
    *,
    batch_size: int = 1,
    seq_len: int | None = None,
    max_new_tokens: int | None = None,
    image_size: int | None = None,
    seconds: int | None = None,
    task: str | None = None,
    dtype: Dtype | None = None,
    precision: Precision | None = None,
    method: str = "",
    lora: int | None = None,
    lora_targets: str | None = None,
    optimizer: str | None = None,
    quantization: Quantization | None = None,
    checkpointing: bool = False,
    attention: str | None = None,
    liger: bool = False,
    accumulate: int = 1,
    compile: bool = False,
    padded: bool = False,
) -> Loaded:
    """A model by its name, a batch, and one step of its training; no weights are fetched.

    ::

        model, batch, step = vramkit.models.load("torchvision:resnet50", batch_size=32)
        loaded = vramkit.models.load("hf:./folder-with-config.json", seq_len=4096, lora=16, checkpointing=True)
        estimate = vramkit.estimate(**loaded.arguments(), gpu="rtx4090")

    The step is that of a plain script: the batch goes to the GPU, forward, loss, backward, ``optimizer.step()``,
    ``zero_grad()``. Of ``hf:`` models the loss is the model's own, and ``use_cache`` is off, as in ``Trainer``.

    Args:
        name: ``"hf:NAME"`` (a model of the hub, of which config.json alone is read), ``"hf:FOLDER"`` (with a
            config.json), ``"timm:NAME"``, ``"torchvision:NAME"``, or ``"module:function"``, which returns
            (model, batch), or a dict of arguments of ``vramkit.estimate``, and takes no options.
        batch_size: rows of the batch; with ``accumulate``, of each of its parts.
        seq_len: tokens of a text, of a prompt, or of what a speech model is to say; None: 512, or as many as the
            model takes (of Whisper: all; 128 where sound is told without a decoder). An image within a text counts,
            and without ``seq_len`` comes on top.
        max_new_tokens: how many ``generate()`` adds; None: 128.
        image_size: pixels of height and width; None: the model's, or 800 x 1333 where objects are detected in images
            of any size.
        seconds: of a sound, where a model takes samples (16 kHz); None: 10.
        task: what a ``hf:`` model is for, such as "sequence-classification"; None: as its configuration says.
        dtype: of the parameters; None: as the configuration says, else float32.
        precision: both in one, in Lightning's words: "32-true", "bf16-true", "16-true" are dtypes of parameters;
            "bf16-mixed" and "16-mixed" are autocast over float32, the second with a ``GradScaler``.
        method: "full", "lora", "qlora" (adapters beside weights in 4 bits), "freeze:N" (all but the first N blocks and
            what is before them: layers of a transformer, stages of a convolutional model), or "inference": a forward
            without gradients, of models that write text ``generate()``. Empty: full, with ``lora`` lora.
        lora: rank of the adapters; None: 8, as in PEFT.
        lora_targets: "all-linear", or names of modules, with commas; None: as PEFT has it for the model.
        optimizer: a class of ``torch.optim`` in any case, "adamw-fused", "adamw-8bit" (bitsandbytes),
            "sgd-momentum", or "module:Class"; None: "adamw".
        quantization: of the weights beside adapters, or in inference, by bitsandbytes: "nf4", "fp4", "int8", or
            "nf4-double", whose blocks' factors are quantized too; None: with "qlora" that, else none.
        checkpointing: activations are computed again in the backward.
        attention: "sdpa", "eager", "flash_attention_2", ...; None: transformers chooses.
        liger: Liger's kernels in place of parts of a ``hf:`` model, as ``Trainer(use_liger_kernel=True)`` has them.
        accumulate: how many forwards and backwards go before a step of the optimizer.
        compile: ``torch.compile`` the model.
        padded: texts of the batch differ in length, so that attention needs a mask.

    Raises:
        UsageError: the name or an option can't be; a library isn't installed; the hub can't be reached.
    """
    options: dict[str, Any] = {key: value for key, value in locals().items() if key in OPTIONS}
    asked = f"{name} was asked for"
    if not is_named(name):
        if given := [key for key in OPTIONS if options[key] != getattr(Recipe, key)]:
            raise UsageError(
                asked,
                f"with {given[0]}={options[given[0]]!r}",
                "What a function returns says itself how it is trained",
                "Leave it out, or say it in the function",
            )
        return as_loaded(asked, arguments_from("vramkit.models.load", name))
    recipe = Recipe(asked=asked, **options)
    source, _, rest = name.partition(":")
    if not rest:
        raise UsageError(asked, "it ends at the colon", instead=f"Write {source}:NAME")
    if source == "hf":
        from . import huggingface

        return huggingface.load(rest, recipe)
    from . import images

    return images.load_timm(rest, recipe) if source == "timm" else images.load_torchvision(rest, recipe)
