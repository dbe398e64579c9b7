"""The vocabulary: events and allocations of a device, and what they sum to by category, moment and module. No torch."""
