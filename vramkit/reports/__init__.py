"""Readers that show a result to people: plain text, and what would lower the peak. They know results, which know none of
them but the one text report.
"""
