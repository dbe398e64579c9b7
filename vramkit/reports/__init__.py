"""Readers that show a result to people: as text, with what would lower the peak. No result knows more than `report`."""
