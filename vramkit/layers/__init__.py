"""`vramkit.summary`: a model's layers as a table, with what each takes in a training step."""
