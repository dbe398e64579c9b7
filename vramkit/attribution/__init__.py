"""What every allocation was for, settled from a recording: its phase, module and step, then its category. No torch."""
