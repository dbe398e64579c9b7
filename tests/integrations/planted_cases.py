"""The changes that `planted_regressions` plants, and what the gate should call the place of each."""

CASES = {
    "activation kept twice": "Net.mlp",
    "mask in float32": "Net.attention",
    "optimizer without fused": "optimizer step",
    "checkpoint lost": "Net.mlp",
    "activation written out": "Net.mlp",
    "outputs kept": "Net.head",
    "autocast lost": "Net.mlp",
    "table in float64": "Net.attention",
    "vocabulary padded": "Net.embed",
    "gradients stay": "Net.mlp",
}
