"""What a recording comes to, as values that outlive the process, and as files. No torch."""
