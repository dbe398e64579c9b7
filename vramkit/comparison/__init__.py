"""Two results compared: what grew or shrank, and why, as far as the tapes prove it. No torch."""
