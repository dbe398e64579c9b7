"""A result in the forms that other tools open: a trace for Perfetto, torch's snapshot, a table, pictures. No torch."""
