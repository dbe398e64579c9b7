"""`vramkit.plan`: changes of a training program that are run, and the cheapest with which it fits."""
