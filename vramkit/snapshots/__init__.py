"""torch's snapshot format: opened without running what is in it, followed, and made a profile. No torch."""
