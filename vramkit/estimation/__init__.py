"""`vramkit.estimate`, and the `Estimate` that it returns."""
