"""The lesson of the demo: a classifier of handwritten digits, what its textbook says, and how it is trained."""
