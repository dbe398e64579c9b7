"""Operators with temporaries of their own: sorts, reductions, indexing, random numbers, losses, pooling."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from .common import BF16, DOUBLE, HALF, LAST, Part, Program, known, there_and_back, x

PROGRAMS: dict[str, Program] = {}


def sorts() -> Iterator[Part]:
    for shape in ((1000,), (4096,), (100_000,), (3_000_000,), (64, 1000), (4, 50_000), (2048, 2048), (100, 33, 64)):
        for dtype in (torch.float32, HALF, torch.int64):
            make = (
                (lambda shape=shape: torch.randint(1000, shape, device="cuda"))
                if dtype == torch.int64
                else (lambda shape=shape, dtype=dtype: x(*shape, dtype=dtype, grad=False))
            )
            yield f"sort {shape} {dtype}", lambda make=make: make().sort()
            yield f"stable sort {shape} {dtype}", lambda make=make: make().sort(stable=True, descending=True)
            yield f"sort dim 0 {shape} {dtype}", lambda make=make: make().sort(dim=0)
            yield f"argsort {shape} {dtype}", lambda make=make: make().argsort()
            yield f"topk {shape} {dtype}", lambda make=make: make().topk(5)
            yield f"topk many {shape} {dtype}", lambda make=make: make().topk(33)
            yield f"kthvalue {shape} {dtype}", lambda make=make: make().kthvalue(3)
            yield f"median {shape} {dtype}", lambda make=make: make().median()
            yield f"median of rows {shape} {dtype}", lambda make=make: make().median(dim=-1)
            yield f"cumsum {shape} {dtype}", lambda make=make: make().cumsum(0)
            yield f"cumsum of rows {shape} {dtype}", lambda make=make: make().cumsum(-1)
    yield "mode", lambda: known(8, 1000, high=50).mode()
    yield "quantile", lambda: torch.quantile(x(100_000, grad=False), torch.tensor([0.1, 0.5], device="cuda"))
    yield "cummax", lambda: x(64, 1000, grad=False).cummax(1)
    yield "cumprod", lambda: x(64, 1000, grad=False).cumprod(1)
    yield "logcumsumexp", lambda: x(64, 1000, grad=False).logcumsumexp(1)
    yield "searchsorted", lambda: torch.searchsorted(x(1000, grad=False), x(100, grad=False))
    yield "histc", lambda: torch.histc(x(1_000_000, grad=False), 100)
    yield "msort", lambda: torch.msort(x(500, 30, grad=False))


def sizes_from_values() -> Iterator[Part]:
    for shape in ((100,), (5000,), (64, 300), (20, 30, 40)):
        yield f"nonzero {shape}", lambda shape=shape: known(*shape, high=3).nonzero()
        yield f"nonzero as tuple {shape}", lambda shape=shape: known(*shape, high=2).nonzero(as_tuple=True)
        yield f"masked_select {shape}", lambda shape=shape: known(*shape, high=100)[known(*shape, high=2) > 0]
        yield f"unique {shape}", lambda shape=shape: known(*shape, high=40).unique()
        yield (
            f"unique with all {shape}",
            lambda shape=shape: known(*shape, high=40).unique(return_inverse=True, return_counts=True),
        )
        yield f"unique unsorted {shape}", lambda shape=shape: torch.unique(known(*shape, high=9), sorted=False)
        yield f"unique rows {shape}", lambda shape=shape: known(*shape, high=2).unique(dim=0)
        yield f"unique_consecutive {shape}", lambda shape=shape: known(*shape, high=3).unique_consecutive()
        yield f"bincount {shape}", lambda shape=shape: known(*shape, high=77).flatten().bincount()
        yield f"where {shape}", lambda shape=shape: torch.where(known(*shape, high=2) > 0)
        yield f"count {shape}", lambda shape=shape: known(*shape, high=2).count_nonzero().item()
    yield "repeat_interleave", lambda: torch.repeat_interleave(known(100, 3), known(100, high=5), dim=0)
    yield "isin", lambda: torch.isin(known(1000, high=50), known(20, high=50))
    yield "index by mask", lambda: known(200, 16)[known(200, high=2).bool()]
    yield "combinations", lambda: torch.combinations(known(40))


def reductions() -> Iterator[Part]:
    shapes = ((1 << 20,), (5_000_000,), (1024, 1024), (16, 100_000), (100_000, 16), (8, 64, 56, 56), (50_000_000,))
    kinds = {
        "sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "norm": torch.linalg.vector_norm,
        "var": torch.var, "prod": torch.prod, "argmax": torch.argmax, "any": torch.any,
    }  # fmt: skip
    for shape in shapes:
        for dtype in (torch.float32, BF16, DOUBLE):
            for kind, reduce in kinds.items():
                yield (
                    f"{kind} {shape} {dtype}",
                    lambda shape=shape, dtype=dtype, reduce=reduce: reduce(x(*shape, dtype=dtype, grad=False)),
                )
                if len(shape) > 1 and kind != "any":
                    for dim in (0, -1):
                        yield (
                            f"{kind} {shape} {dtype} dim {dim}",
                            lambda shape=shape, dtype=dtype, reduce=reduce, dim=dim: reduce(
                                x(*shape, dtype=dtype, grad=False), dim=dim
                            ),
                        )
        yield f"max {shape}", lambda shape=shape: x(*shape, grad=False).max()
        yield f"std_mean {shape}", lambda shape=shape: torch.std_mean(x(*shape, grad=False))
        yield f"logsumexp {shape}", lambda shape=shape: x(*shape, grad=False).logsumexp(-1)
        yield f"softmax {shape}", lambda shape=shape: x(*shape, grad=False).softmax(-1)
        yield f"all finite {shape}", lambda shape=shape: x(*shape, grad=False).isfinite().all()


def indexing() -> Iterator[Part]:
    for count in (100, 3072, 3073, 20_000, 60_000):
        for rows in (100, 50_257):
            places = lambda count=count, rows=rows: known(count, high=rows)
            for dtype in (torch.float32, BF16):
                name = f"{count} of {rows} {dtype}"
                table = lambda rows=rows, dtype=dtype: x(rows, 64, dtype=dtype)
                yield there_and_back(
                    f"embedding {name}", lambda table=table, places=places: F.embedding(places(), table())
                )
                yield there_and_back(f"index {name}", lambda table=table, places=places: table()[places()])
                yield there_and_back(
                    f"index_select {name}", lambda table=table, places=places: table().index_select(0, places())
                )
                yield there_and_back(
                    f"index_add {name}",
                    lambda table=table, places=places, count=count, dtype=dtype: (table() * 1).index_add(
                        0, places(), x(count, 64, dtype=dtype)
                    ),
                )
                yield there_and_back(
                    f"index_put, added {name}",
                    lambda table=table, places=places, count=count, dtype=dtype: (table() * 1).index_put(
                        (places(),), x(count, 64, dtype=dtype), accumulate=True
                    ),
                )
            yield there_and_back(
                f"by frequency {count} of {rows}",
                lambda places=places, rows=rows: F.embedding(places(), x(rows, 64), scale_grad_by_freq=True),
            )
            yield there_and_back(
                f"sparse {count} of {rows}",
                lambda places=places, rows=rows: F.embedding(places(), x(rows, 64), sparse=True),
            )
            yield (
                f"coalesce {count} of {rows}",
                lambda places=places, rows=rows, count=count: torch.sparse_coo_tensor(
                    places()[None], x(count, 8, grad=False), (rows, 8)
                ).coalesce(),
            )
    yield there_and_back("gather", lambda: x(100, 200).gather(1, known(100, 50, high=200)))
    yield there_and_back("scatter_add", lambda: x(100, 200).scatter_add(1, known(100, 50, high=200), x(100, 50)))
    yield there_and_back("masked_fill", lambda: x(64, 1000).masked_fill(known(64, 1000, high=2) > 0, -1.0))
    yield there_and_back("one_hot", lambda: F.one_hot(known(4096, high=1000), 1000))
    yield there_and_back("take_along_dim", lambda: x(64, 50).take_along_dim(known(64, 5, high=50), 1))
    for kind in ("sum", "mean", "amax", "prod"):
        yield there_and_back(
            f"scatter_reduce {kind}",
            lambda kind=kind: x(100, 64).scatter_reduce(0, known(512, 64, high=100), x(512, 64), kind),
        )
    yield there_and_back("roll", lambda: x(8, 56, 56, 96).roll((3, 3), (1, 2)))
    yield there_and_back("flip and cat", lambda: torch.cat([x(100, 64).flip(0), x(20, 64)]))


def bags() -> Iterator[Part]:
    for count in (100, 3072, 3080, 60_000):
        for rows in (100, 50_257):
            for mode in ("max", "mean", "sum"):
                yield there_and_back(
                    f"{mode} {count} of {rows}",
                    lambda count=count, rows=rows, mode=mode: F.embedding_bag(
                        known(count, high=rows), x(rows, 64), torch.arange(0, count, 10, device="cuda"), mode=mode
                    ),
                )
                yield there_and_back(
                    f"{mode} of ten, {count} of {rows}",
                    lambda count=count, rows=rows, mode=mode: F.embedding_bag(
                        known(count // 10, 10, high=rows), x(rows, 64), mode=mode
                    ),
                )


def randomness() -> Iterator[Part]:
    for count in (100, 10_000, 100_000, 1_000_000, 10_000_000):
        yield f"randperm {count}", lambda count=count: torch.randperm(count, device="cuda")
        yield f"rand {count}", lambda count=count: torch.rand(count, device="cuda")
    for count in (100, 10_000, 100_000):
        weights = lambda count=count: torch.rand(8, count, device="cuda")
        yield f"multinomial {count}", lambda weights=weights: torch.multinomial(weights(), 64)
        yield f"multinomial, replacing {count}", lambda weights=weights: torch.multinomial(weights(), 64, True)
        yield f"multinomial of one {count}", lambda weights=weights: torch.multinomial(weights(), 1)
    for dtype in (torch.float32, BF16):
        yield there_and_back(f"dropout {dtype}", lambda dtype=dtype: F.dropout(x(4096, 1000, dtype=dtype), 0.1))
        yield there_and_back(f"alpha dropout {dtype}", lambda dtype=dtype: F.alpha_dropout(x(512, 99, dtype=dtype)))
        yield there_and_back(
            f"dropout of channels {dtype}", lambda dtype=dtype: F.dropout2d(x(8, 64, 28, 28, dtype=dtype))
        )
    yield "bernoulli", lambda: torch.rand(1000, 1000, device="cuda").bernoulli()
    yield "normal", lambda: torch.normal(0.0, torch.rand(100, 10, device="cuda"))
    yield there_and_back("gumbel", lambda: F.gumbel_softmax(x(512, 100), hard=True))
    yield "gamma", lambda: torch.distributions.Gamma(torch.ones(1000, device="cuda"), 1.0).sample()


def losses() -> Iterator[Part]:
    pairs = ("mse_loss", "smooth_l1_loss", "huber_loss", "l1_loss", "binary_cross_entropy_with_logits", "kl_div")
    for name in pairs:
        for kind in ("mean", "sum", "none"):
            for dtype in (torch.float32, BF16):
                yield there_and_back(
                    f"{name} {kind} {dtype}",
                    lambda name=name, kind=kind, dtype=dtype: getattr(F, name)(
                        x(2048, 1000, dtype=dtype), x(2048, 1000, dtype=dtype, grad=False), reduction=kind
                    ),
                )
    for shape in ((4096, 1000), (512, 50_257), (8, 21, 64, 64), (100, 10)):
        places = (shape[0], *shape[2:])
        for dtype in (torch.float32, BF16):
            for more in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}, {"ignore_index": 3}):
                yield there_and_back(
                    f"cross_entropy {shape} {dtype} {more}",
                    lambda shape=shape, places=places, dtype=dtype, more=more: F.cross_entropy(
                        x(*shape, dtype=dtype), known(*places, high=shape[1]), **more
                    ),
                )
        yield there_and_back(
            f"cross_entropy weighted {shape}",
            lambda shape=shape, places=places: F.cross_entropy(
                x(*shape), known(*places, high=shape[1]), weight=torch.rand(shape[1], device="cuda")
            ),
        )
        yield there_and_back(
            f"nll {shape}",
            lambda shape=shape, places=places: F.nll_loss(x(*shape).log_softmax(1), known(*places, high=shape[1])),
        )
    for lengths in ((50, 16, 20), (100, 4, 40), (800, 8, 29)):
        time, batch, classes = lengths
        for on_device in (False, True):
            yield there_and_back(
                f"ctc {lengths} lengths on the {'device' if on_device else 'host'}",
                lambda time=time, batch=batch, classes=classes, on_device=on_device: ctc(
                    time, batch, classes, "cuda" if on_device else "cpu"
                ),
            )
    yield there_and_back("triplet", lambda: F.triplet_margin_loss(x(512, 64), x(512, 64), x(512, 64)))
    yield there_and_back("cosine", lambda: F.cosine_embedding_loss(x(512, 64), x(512, 64), x(512, grad=False).sign()))
    yield there_and_back("multi margin", lambda: F.multi_margin_loss(x(512, 64), known(512, high=64)))
    yield there_and_back("cdist", lambda: torch.cdist(x(200, 64), x(300, 64)))
    yield there_and_back("cdist 1", lambda: torch.cdist(x(200, 64), x(300, 64), p=1))


def ctc(time: int, batch: int, classes: int, where: str) -> torch.Tensor:
    targets = 1 + torch.arange(batch * 10).reshape(batch, 10) % (classes - 1)
    lengths = torch.full((batch,), time, device=where), torch.full((batch,), 10, device=where)
    return F.ctc_loss(x(time, batch, classes).log_softmax(2), targets.to(where, torch.int32), *lengths)


def images() -> Iterator[Part]:
    for dtype in (torch.float32, BF16):
        for layout in (torch.contiguous_format, LAST):
            make = lambda dtype=dtype, layout=layout: (
                x(8, 32, 56, 56, dtype=dtype, grad=False).contiguous(memory_format=layout).requires_grad_()
            )
            name = f"{dtype} {layout}"
            yield there_and_back(f"max_pool {name}", lambda make=make: F.max_pool2d(make(), 3, 2, 1))
            yield there_and_back(f"avg_pool {name}", lambda make=make: F.avg_pool2d(make(), 2))
            yield there_and_back(f"adaptive_avg {name}", lambda make=make: F.adaptive_avg_pool2d(make(), 1))
            yield there_and_back(f"adaptive_avg 7 {name}", lambda make=make: F.adaptive_avg_pool2d(make(), 7))
            yield there_and_back(f"adaptive_max {name}", lambda make=make: F.adaptive_max_pool2d(make(), 7))
            for mode in ("nearest", "bilinear", "bicubic"):
                yield there_and_back(
                    f"{mode} {name}", lambda make=make, mode=mode: F.interpolate(make(), scale_factor=2, mode=mode)
                )
            yield there_and_back(f"reflection {name}", lambda make=make: F.pad(make(), (1, 2, 3, 4), mode="reflect"))
            yield there_and_back(f"unfold {name}", lambda make=make: F.unfold(make(), 3))
            yield there_and_back(f"pixel shuffle {name}", lambda make=make: F.pixel_shuffle(make(), 2))
            yield there_and_back(f"gelu {name}", lambda make=make: F.gelu(make()))
            yield there_and_back(f"silu {name}", lambda make=make: F.silu(make()))
            yield there_and_back(f"softmax {name}", lambda make=make: make().softmax(1))
            yield there_and_back(f"glu {name}", lambda make=make: F.glu(make(), 1))
            yield there_and_back(f"prelu {name}", lambda make=make: F.prelu(make(), x(32, dtype=make().dtype)))
            yield there_and_back(f"to half and back {name}", lambda make=make: make().half().float())
    yield there_and_back("grid_sample", lambda: F.grid_sample(x(4, 16, 32, 32), x(4, 40, 40, 2), align_corners=False))
    yield there_and_back("bilinear layer", lambda: nn.Bilinear(48, 32, 16, device="cuda")(x(64, 48), x(64, 32)))
    yield there_and_back("fold", lambda: F.fold(x(8, 16 * 9, 26 * 26), 28, 3))


PROGRAMS["operators: sorts and scans"] = sorts
PROGRAMS["operators: sizes from values"] = sizes_from_values
PROGRAMS["operators: reductions"] = reductions
PROGRAMS["operators: indexing"] = indexing
PROGRAMS["operators: bags of embeddings"] = bags
PROGRAMS["operators: randomness"] = randomness
PROGRAMS["operators: losses"] = losses
PROGRAMS["operators: images and activations"] = images
