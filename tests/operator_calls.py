"""Calls of operators on the device, forward and backward, whose kernels take memory in ways of their own.

``python -m vramkit.devtools.opcheck operator_calls:CALLS`` holds them against fakes; with ``--gpu`` on any card.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vramkit.devtools.opcheck import backward

BF16, LAST = torch.bfloat16, torch.channels_last

CALLS: dict[str, Callable[[], object]] = {}


def call(name: str, function: Callable[[], object]) -> None:
    CALLS[name] = lambda: backward(function())


def x(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda", requires_grad=grad and dtype.is_floating_point)


def ints(*shape: int) -> torch.Tensor:
    return x(*shape, dtype=torch.long)


def image(*shape: int, dtype: torch.dtype = torch.float32, memory: torch.memory_format = LAST) -> torch.Tensor:
    return x(*shape, dtype=dtype).contiguous(memory_format=memory)


# -- losses ------------------------------------------------------------------------------------------------------------

for name in (
    "mse_loss", "smooth_l1_loss", "huber_loss", "l1_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "soft_margin_loss",
):  # fmt: skip
    for reduction in ("mean", "none"):
        call(
            f"{name}, {reduction}",
            lambda name=name, reduction=reduction: getattr(F, name)(
                x(4096, 100), x(4096, 100, grad=False), reduction=reduction
            ),
        )
call("kl_div", lambda: F.kl_div(x(4096, 100), x(4096, 100, grad=False), reduction="batchmean"))
call("mse_loss, bf16", lambda: F.mse_loss(x(4096, 100, dtype=BF16), x(4096, 100, dtype=BF16)))
call(
    "binary_cross_entropy_with_logits, weighted",
    lambda: F.binary_cross_entropy_with_logits(x(64, 1000), x(64, 1000, grad=False), pos_weight=x(1000, grad=False)),
)
call("cross_entropy", lambda: F.cross_entropy(x(512, 5000), ints(512)))
call("cross_entropy, smoothed", lambda: F.cross_entropy(x(512, 1000), ints(512), label_smoothing=0.1))
call("cross_entropy of pixels", lambda: F.cross_entropy(x(4, 21, 64, 64), ints(4, 64, 64)))
call("cross_entropy of pixels, none", lambda: F.cross_entropy(x(4, 21, 64, 64), ints(4, 64, 64), reduction="none"))
for reduction in ("mean", "none"):
    call(
        f"multi_margin_loss, {reduction}",
        lambda reduction=reduction: F.multi_margin_loss(x(512, 100), ints(512), reduction=reduction),
    )
    call(
        f"multilabel_margin_loss, {reduction}",
        lambda reduction=reduction: F.multilabel_margin_loss(x(512, 100), ints(512, 100), reduction=reduction),
    )
call("triplet_margin_loss", lambda: F.triplet_margin_loss(x(512, 64), x(512, 64), x(512, 64)))

# -- reductions, scans, sorts, sampling --------------------------------------------------------------------------------

for shape in ((1 << 20,), (8, 512, 512), (1000, 2000)):
    dims = {1: 0, 2: 1, 3: 1}[len(shape)]
    for name in ("sum", "mean", "amax", "argmax", "max", "var_mean", "logsumexp", "count_nonzero", "std"):
        call(f"{name} {shape}", lambda name=name, shape=shape, dims=dims: getattr(torch, name)(x(*shape), dims))
call("amax, bf16", lambda: x(1 << 20, dtype=BF16).amax(0))
call("aminmax", lambda: torch.aminmax(x(1 << 16, 64), dim=0))
call("max of all", lambda: x(1 << 20).max())
call("isinf", lambda: x(4096, 512).isinf().any())
call("norm, largest", lambda: x(4096, 512).norm(float("inf"), dim=1))
for kind in (torch.bool, torch.int32, torch.int64):
    call(f"sum, {kind}", lambda kind=kind: x(1 << 20, dtype=kind).sum())
    call(f"cumsum, {kind}", lambda kind=kind: x(1 << 20, dtype=kind).cumsum(0))
for kind in (torch.float32, BF16):
    call(f"cumsum, {kind}", lambda kind=kind: x(1_000_000, dtype=kind).cumsum(0))
    for shape, dim in (
        ((1 << 20,), 0), ((64, 1 << 14), 1), ((1 << 14, 64), 0), ((8, 512, 512), 1), ((200, 5000), 1), ((3, 5000), 1),
    ):  # fmt: skip
        call(
            f"sort {shape} along {dim}, {kind}", lambda shape=shape, dim=dim, kind=kind: x(*shape, dtype=kind).sort(dim)
        )
    call(f"topk of a vocabulary, {kind}", lambda kind=kind: x(64, 50_257, dtype=kind).topk(50, 1))
    call(f"topk, many, {kind}", lambda kind=kind: x(4, 100_000, dtype=kind).topk(5000, 1))
call("topk, turned", lambda: x(500, 64).t().topk(50, 1))
call("topk, int64", lambda: x(1 << 20, dtype=torch.int64).topk(5))
call("median", lambda: x(1 << 18).median())
call("nanmedian", lambda: x(1 << 18).nanmedian())
call("median of rows", lambda: x(512, 512).t().median(1))
call("kthvalue", lambda: x(64, 1000).kthvalue(3, 1))
call("mode", lambda: x(8, 100, 64).mode(1))
call("quantile", lambda: torch.quantile(x(100_000), 0.5))
for count in (100, 10_000, 100_000):
    call(f"randperm {count}", lambda count=count: torch.randperm(count, device="cuda"))
    call(f"multinomial {count}", lambda count=count: torch.multinomial(x(count, grad=False), 64))
    call(f"multinomial {count}, replacing", lambda count=count: torch.multinomial(x(count, grad=False), 64, True))
call("multinomial of one", lambda: torch.multinomial(x(8, 1000, grad=False), 1))
call("histc", lambda: torch.histc(x(1_000_000, grad=False), 100))

# -- indexing ----------------------------------------------------------------------------------------------------------


def assigned(value: Any) -> torch.Tensor:
    table = x(5000, 64) * 1
    table[ints(100)] = value() if callable(value) else value
    return table


def index_reduced(reduction: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is in beta
        return torch.index_reduce(x(100, 64), 0, ints(512), x(512, 64), reduction)


for count in (100, 3073, 100_000):
    call(f"embedding {count}", lambda count=count: F.embedding(ints(count), x(30_522, 64)))
    call(f"embedding {count}, few rows", lambda count=count: F.embedding(ints(count), x(100, 64, dtype=BF16)))
    call(
        f"embedding {count}, by frequency",
        lambda count=count: F.embedding(ints(count), x(3000, 64), scale_grad_by_freq=True),
    )
    call(f"embedding {count}, int32", lambda count=count: F.embedding(x(count, dtype=torch.int32), x(3000, 64)))
    for mode in ("mean", "max"):
        call(
            f"embedding_bag {count}, {mode}",
            lambda count=count, mode=mode: F.embedding_bag(ints(count // 10, 10), x(3000, 64), mode=mode),
        )
    call(f"index {count}", lambda count=count: x(5000, 64)[ints(count)])
    call(f"index twice {count}", lambda count=count: x(500, 64)[ints(count), ints(count)])
    call(f"take {count}", lambda count=count: torch.take(x(5000, 64), ints(count)))
    call(
        f"index_put {count}, added",
        lambda count=count: (x(5000, 64) * 1).index_put((ints(count),), x(count, 64), accumulate=True),
    )
for mode in ("sum", "mean", "max"):
    call(f"embedding_bag, {mode}, summed", lambda mode=mode: F.embedding_bag(ints(64, 10), x(300, 64), mode=mode).sum())
    call(
        f"embedding_bag, {mode}, frozen",
        lambda mode=mode: F.embedding_bag(ints(64, 10), x(300, 64, grad=False), mode=mode),
    )
call("setitem", lambda: assigned(lambda: x(100, 64)))
call("setitem of a number", lambda: assigned(0.0))
call("one_hot", lambda: F.one_hot(ints(4096), 1000))
for count in (100, 10_000, 100_000):
    call(
        f"embedding {count}, shortened",
        lambda count=count: F.embedding(ints(count), x(3000, 64, grad=False), max_norm=1.0),
    )
for reduction in ("sum", "mean", "amax", "prod"):
    call(
        f"scatter_reduce, {reduction}",
        lambda reduction=reduction: x(100, 64).scatter_reduce(0, ints(512, 64), x(512, 64), reduction),
    )
    call(
        f"scatter_reduce, {reduction}, into nothing",
        lambda reduction=reduction: x(100, 64, grad=False).scatter_reduce(
            0, ints(512, 1).expand(-1, 64), x(512, 64), reduction, include_self=False
        ),
    )
for reduction in ("mean", "amax", "prod"):
    call(f"index_reduce, {reduction}", lambda reduction=reduction: index_reduced(reduction))
for count in (30, 300, 3000):
    call(
        f"masked_scatter, {count}",
        lambda count=count: (x(count, 200) * 1).masked_scatter(x(count, 200, dtype=torch.bool), x(count, 200)),
    )
call("roll", lambda: x(8, 56, 56, 96).roll((3, 3), (1, 2)))

# -- norms, windows ----------------------------------------------------------------------------------------------------


def batch_norm(tensor: torch.Tensor, *, affine: bool = True, training: bool = True) -> torch.Tensor:
    channels = tensor.shape[1]
    weights = (x(channels), x(channels)) if affine else (None, None)
    return F.batch_norm(tensor, x(channels, grad=False), x(channels, grad=False), *weights, training)


for name, make in {
    "": lambda: x(16, 64, 28, 28),
    "bf16": lambda: x(16, 64, 28, 28, dtype=BF16),
    "channels last": lambda: image(16, 64, 28, 28),
    "channels last, bf16": lambda: image(16, 64, 28, 28, dtype=BF16),
    "one pixel": lambda: x(4, 2048, 1, 1, dtype=BF16),
    "vectors": lambda: x(4096, 512),
    "turned": lambda: x(64, 100, 512, dtype=BF16).transpose(1, 2),
}.items():
    call(f"batch_norm, {name}", lambda make=make: batch_norm(make()))
    call(f"batch_norm, plain, {name}", lambda make=make: batch_norm(make(), affine=False))
    call(f"batch_norm, evaluating, {name}", lambda make=make: batch_norm(make(), training=False))
call("group_norm", lambda: F.group_norm(x(16, 64, 28, 28, dtype=BF16), 8, x(64, dtype=BF16), x(64, dtype=BF16)))
call("instance_norm", lambda: F.instance_norm(x(16, 64, 28, 28)))
for shape, dim in (((512, 4096), 0), ((8, 64, 128), 1)):
    for kind in (torch.float32, BF16):
        call(
            f"renorm {shape}, {kind}", lambda shape=shape, dim=dim, kind=kind: x(*shape, dtype=kind).renorm(2, dim, 1.0)
        )
call("rms_norm", lambda: F.rms_norm(x(64, 100, 256), (256,), x(256)))
for kind, make in {"": lambda: x(8, 16, 28, 28), ", channels last": lambda: image(8, 16, 28, 28)}.items():
    for mode in ("nearest", "bilinear", "bicubic"):
        call(f"{mode}{kind}", lambda make=make, mode=mode: F.interpolate(make(), scale_factor=2, mode=mode))
    call(f"adaptive_max_pool{kind}", lambda make=make: F.adaptive_max_pool2d(make(), 7))
    call(f"adaptive_avg_pool{kind}", lambda make=make: F.adaptive_avg_pool2d(make(), 7))
    call(f"max_pool{kind}", lambda make=make: F.max_pool2d(make(), 3, 2, 1))
    call(f"reflection{kind}", lambda make=make: F.pad(make(), (1, 2, 3, 4), mode="reflect"))
    call(f"unfold{kind}", lambda make=make: F.unfold(make(), 3))


def resized(make: Callable[[], torch.Tensor], mode: str) -> torch.Tensor:
    return F.interpolate(make(), scale_factor=2, mode=mode.partition(" ")[0].strip(","))


for mode, make in {
    "linear": lambda: x(8, 16, 28), "trilinear": lambda: x(2, 4, 8, 8, 8), "nearest": lambda: x(8, 16, 28),
    "nearest-exact": lambda: x(8, 16, 28), "nearest-exact of images": lambda: x(8, 16, 28, 28),
    "nearest-exact of images, channels last": lambda: image(8, 16, 28, 28),
    "nearest of volumes": lambda: x(2, 4, 8, 8, 8), "nearest of a turned signal": lambda: x(8, 28, 16).transpose(1, 2),
    "nearest of volumes, channels last": lambda: image(2, 4, 8, 8, 8, memory=torch.channels_last_3d),
}.items():  # fmt: skip
    call(mode, lambda make=make, mode=mode: resized(make, mode))
    call(f"{mode}, summed", lambda make=make, mode=mode: resized(make, mode).sum())
for name, pool in {"max_pool": F.max_pool2d, "avg_pool": F.avg_pool2d}.items():
    call(f"{name}, its gradient turned", lambda pool=pool: pool(x(8, 16, 28, 28), 2).contiguous(memory_format=LAST))
call("fold", lambda: F.fold(x(8, 16 * 9, 26 * 26), 28, 3))
call("windows of a signal", lambda: x(8, 512, 64).unfold(1, 16, 8) * 2)

# -- distances, cells, lists of tensors --------------------------------------------------------------------------------

for power in (1.0, 2.0):
    call(f"cdist, {power}", lambda power=power: torch.cdist(x(100, 64), x(120, 64), power))
call("pdist", lambda: F.pdist(x(100, 64)))
for cell in (nn.LSTMCell, nn.GRUCell):
    call(cell.__name__, lambda cell=cell: cell(64, 128, device="cuda")(x(32, 64)))


def recurrent(kind: type[nn.RNNBase], *shape: int, dtype: torch.dtype = torch.float32, **more: Any) -> torch.Tensor:
    with warnings.catch_warnings():  # weights of bfloat16 are not made flat, and torch says so
        warnings.simplefilter("ignore")
        return kind(shape[-1], **more, device="cuda", dtype=dtype)(x(*shape, dtype=dtype))[0]


def packed(kind: type[nn.RNNBase], **more: Any) -> torch.Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x(8, 50, 64), torch.tensor([50, 41, 33, 20, 20, 11, 5, 1]), True)
    return kind(64, 200, batch_first=True, **more, device="cuda")(rows)[0].data


for kind in (nn.LSTM, nn.GRU, nn.RNN):
    for dtype in (torch.float32, torch.float16, *[BF16] * (kind is nn.LSTM)):
        for shape, sizes in (
            ((35, 20, 39), {"hidden_size": 200, "batch_first": True}),
            ((35, 20, 200), {"hidden_size": 400, "num_layers": 3}),
            ((50, 32, 64), {"hidden_size": 160, "bidirectional": True}),
            ((10, 8, 32), {"hidden_size": 33, "bias": False, "num_layers": 2, "bidirectional": True}),
            ((20, 64, 512), {"hidden_size": 512}),
        ):
            call(
                f"{kind.__name__} {shape} {sizes} {dtype}",
                lambda kind=kind, shape=shape, sizes=sizes, dtype=dtype: recurrent(kind, *shape, dtype=dtype, **sizes),
            )
    for more in ({}, {"bidirectional": True}, {"num_layers": 2}):
        call(f"{kind.__name__}, packed {more}", lambda kind=kind, more=more: packed(kind, **more))
call("LSTM, projected", lambda: recurrent(nn.LSTM, 20, 8, 64, hidden_size=128, num_layers=2, proj_size=32))


def lists(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [x(100, 300 + i, dtype=dtype, grad=False) for i in range(3)]


call("each to its power", lambda: torch._foreach_pow(2.0, lists()))
call("each by a number", lambda: torch._foreach_mul([x(grad=False) for _ in range(3)], lists()))
call("each, of two types", lambda: torch._foreach_add(lists(BF16), lists()))
call("the largest of each", lambda: torch._foreach_max(lists()))

# -- attention ---------------------------------------------------------------------------------------------------------


def attend(heads: int, keys: int, length: int, width: int, dtype: torch.dtype = BF16, **more: Any) -> torch.Tensor:
    key, value = (x(2, keys, length, width, dtype=dtype) for _ in range(2))
    return F.scaled_dot_product_attention(
        x(2, heads, length, width, dtype=dtype), key, value, enable_gqa=heads != keys, **more
    )


for dtype in (torch.float32, BF16):
    for shape in ((12, 12, 256, 64), (8, 2, 256, 128), (4, 4, 333, 256), (8, 8, 64, 33)):
        call(f"attention {shape}, {dtype}", lambda shape=shape, dtype=dtype: attend(*shape, dtype))
        call(
            f"attention {shape}, {dtype}, dropout",
            lambda shape=shape, dtype=dtype: attend(*shape, dtype, dropout_p=0.1),
        )
for width in (64, 96, 128):
    call(
        f"attention, masked, {width}",
        lambda width=width: attend(4, 4, 100, width, torch.float16, attn_mask=x(100, 100, dtype=torch.bool)),
    )
call("attention, masked, wide", lambda: attend(4, 4, 333, 256, attn_mask=x(333, 333, dtype=torch.bool)))


def mathematically() -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return attend(4, 4, 128, 64, attn_mask=x(128, 128, dtype=torch.bool))


call("attention, by products", mathematically)
call(
    "one query",
    lambda: F.scaled_dot_product_attention(x(2, 2, 1, 64, dtype=BF16), *(x(2, 2, 512, 64, dtype=BF16),) * 2),
)
call(
    "decoder layer",
    lambda: nn.TransformerDecoderLayer(64, 4, 128, batch_first=True, device="cuda")(x(8, 32, 64), x(8, 20, 64)),
)
call("bilinear layer", lambda: F.bilinear(x(64, 48), x(64, 32), x(16, 48, 32), x(16)))
for name in ("tensor", "as_tensor", "asarray"):
    CALLS[f"{name} of numbers"] = lambda name=name: getattr(torch, name)([1.0] * 1000, device="cuda")
CALLS["a module, copied"] = lambda: copy.deepcopy(nn.Linear(40, 60, device="cuda"))
CALLS["a view, copied"] = lambda: copy.deepcopy(x(100, 6, grad=False)[3:])
call(
    "masked_scatter",
    lambda: x(300, 200, grad=False).masked_scatter(x(300, 200, dtype=torch.bool), x(60_000, grad=False)),
)

# -- the fast path of transformers -------------------------------------------------------------------------------------


def masks(batch: int, queries: int, keys: int) -> dict[str, dict[str, torch.Tensor]]:
    """Masks as modules of torch take them: of keys, of queries and keys, of both."""
    padded, hidden = (x(*shape, dtype=torch.bool) for shape in ((batch, keys), (queries, keys)))
    return {
        "": {}, ", padded": {"key_padding_mask": padded}, ", masked": {"attn_mask": hidden},
        ", both": {"key_padding_mask": padded, "attn_mask": hidden},
    }  # fmt: skip


def attend_fast(length: int, dtype: torch.dtype, mask: str, *, weights: bool) -> None:
    module = nn.MultiheadAttention(64, 4, batch_first=True, device="cuda", dtype=dtype).eval()
    tensor = x(8, length, 64, dtype=dtype)
    with torch.no_grad():
        module(tensor, tensor, tensor, need_weights=weights, **masks(8, length, length)[mask])


def encode_fast(dtype: torch.dtype, mask: str, mode: Any, **more: Any) -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, device="cuda", dtype=dtype, **more).eval()
    given = masks(8, 32, 32)[mask]
    with mode():
        layer(x(8, 32, 64, dtype=dtype), given.get("attn_mask"), given.get("key_padding_mask"))


def encode_padded() -> None:
    with torch.no_grad():
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 0).eval()
        encoder.layers.append(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, device="cuda").eval())
        encoder(x(8, 32, 64), src_key_padding_mask=x(8, 32, dtype=torch.bool))


for dtype in (torch.float32, BF16):
    for mask in ("", ", padded", ", masked", ", both"):
        for length in (32, 1100):
            CALLS |= {
                f"fast attention{mask}, {length}, {dtype}, {weights}": lambda length=length, dtype=dtype, mask=mask,
                weights=weights: attend_fast(length, dtype, mask, weights=weights)
                for weights in (False, True)
            }  # fmt: skip
        for mode in (torch.no_grad, torch.inference_mode):
            CALLS[f"fast encoder{mask}, {dtype}, {mode.__name__}"] = lambda dtype=dtype, mask=mask, mode=mode: (
                encode_fast(dtype, mask, mode)
            )
    CALLS[f"fast encoder, norms first, {dtype}"] = lambda dtype=dtype: encode_fast(
        dtype, "", torch.no_grad, norm_first=True, activation="gelu"
    )
CALLS["fast encoder, padded, which may pack"] = encode_padded


def decode_inferring() -> None:
    with torch.inference_mode():
        nn.TransformerDecoderLayer(64, 4, batch_first=True, device="cuda").eval()(x(8, 32, 64), x(8, 20, 64))


CALLS["decoder layer, inferring"] = decode_inferring

# -- products of another type than their factors -----------------------------------------------------------------------


def half(*shape: int) -> torch.Tensor:
    return x(*shape, dtype=BF16, grad=False)


# Of the first factors not every number is used, so that cuBLAS reads copies.
call("mm, single precision of half", lambda: torch.mm(half(64, 256)[:, ::2], half(128, 64), out_dtype=torch.float32))
call(
    "bmm, single precision of half",
    lambda: torch.bmm(half(3, 64, 256)[..., ::2], half(3, 128, 64), out_dtype=torch.float32),
)
for kind in (torch.float32, BF16):
    call(
        f"addmm, single precision of half, to {kind}",
        lambda kind=kind: torch.addmm(
            x(64, 64, dtype=kind, grad=False), half(64, 256)[:, ::2], half(128, 64), out_dtype=torch.float32
        ),
    )

# -- what kernels refuse -----------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[], object]] = {}
"""Calls of which not all types are the same: torch refuses them, and so do fakes, in the same words."""

HALF, DOUBLE = torch.float16, torch.float64
for kind in (torch.long, HALF, DOUBLE):
    REFUSED |= {
        f"linear, {kind}": lambda kind=kind: F.linear(x(8, 16, dtype=kind), x(32, 16), x(32)),
        f"linear of {kind}": lambda kind=kind: F.linear(x(8, 16), x(32, 16, dtype=kind), x(32, dtype=kind)),
        f"a bias, {kind}": lambda kind=kind: F.linear(x(8, 16), x(32, 16), x(32, dtype=kind)),
        f"a product, {kind}": lambda kind=kind: x(8, 16) @ x(16, 8, dtype=kind),
        f"a product with a vector, {kind}": lambda kind=kind: x(8, 16) @ x(16, dtype=kind),
        f"a convolution, {kind}": lambda kind=kind: F.conv2d(x(2, 4, 16, 16, dtype=kind), x(8, 4, 3, 3)),
        f"attention, {kind}": lambda kind=kind: F.scaled_dot_product_attention(
            x(2, 2, 8, 16), x(2, 2, 8, 16, dtype=kind), x(2, 2, 8, 16)
        ),
        f"a mask, {kind}": lambda kind=kind: attend(2, 2, 8, 16, BF16, attn_mask=x(8, 8, dtype=kind)),
        f"binary_cross_entropy, {kind}": lambda kind=kind: F.binary_cross_entropy(
            x(8, 16), x(8, 16, dtype=kind, grad=False)
        ),
        f"index_add, {kind}": lambda kind=kind: x(8, 16, grad=False).index_add(0, ints(8), x(8, 16, dtype=kind)),
        f"index_put, {kind}": lambda kind=kind: assigned(lambda: x(100, 64, dtype=kind)),
    }
for kind in (HALF, DOUBLE):
    REFUSED |= {
        f"products, {kind}": lambda kind=kind: torch.bmm(x(2, 8, 16, dtype=kind), x(2, 16, 8)),
        f"layer_norm, {kind}": lambda kind=kind: F.layer_norm(x(8, 16, dtype=kind), (16,), x(16), x(16)),
        f"group_norm, {kind}": lambda kind=kind: F.group_norm(x(8, 16, 4, dtype=kind), 4, x(16), x(16)),
        f"group_norm by {kind}": lambda kind=kind: F.group_norm(x(8, 16, 4), 4, x(16, dtype=kind), x(16, dtype=kind)),
        f"batch_norm by {kind}": lambda kind=kind: F.batch_norm(
            x(8, 16), None, None, x(16, dtype=kind), x(16, dtype=kind), True
        ),
        f"grid_sample, {kind}": lambda kind=kind: F.grid_sample(
            x(2, 3, 8, 8), x(2, 8, 8, 2, dtype=kind), align_corners=False
        ),
        f"cross_entropy weighted by {kind}": lambda kind=kind: F.cross_entropy(
            x(8, 16), ints(8), weight=x(16, dtype=kind, grad=False)
        ),
    }
for name, loss in {
    "cross_entropy": F.cross_entropy, "multi_margin_loss": F.multi_margin_loss,
    "multilabel_margin_loss": F.multilabel_margin_loss,
}.items():  # fmt: skip
    shape = (8, 16) if name == "multilabel_margin_loss" else (8,)
    REFUSED[f"{name}, int32"] = lambda loss=loss, shape=shape: loss(x(8, 16), x(*shape, dtype=torch.int32))
REFUSED["cross_entropy of pixels, int32"] = lambda: F.cross_entropy(x(4, 21, 8, 8), x(4, 8, 8, dtype=torch.int32))
REFUSED["one_hot, int32"] = lambda: F.one_hot(x(8, dtype=torch.int32), 10)
REFUSED |= {
    "mm, single precision of two types": lambda: torch.mm(half(8, 16), x(16, 8, dtype=HALF), out_dtype=torch.float32),
    "bmm, single precision of two types": lambda: torch.bmm(
        half(2, 8, 16), x(2, 16, 8, dtype=HALF), out_dtype=torch.float32
    ),
    "addmm, single precision of two types": lambda: torch.addmm(
        x(8, 8), half(8, 16), x(16, 8, dtype=HALF), out_dtype=torch.float32
    ),
    "addmm, single precision to a third type": lambda: torch.addmm(
        x(8, 8, dtype=HALF), half(8, 16), half(16, 8), out_dtype=torch.float32
    ),
}
