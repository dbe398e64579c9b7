"""Readers that show a result to people: plain text first. Leaves of the package: results import them
only when they are to be shown."""
