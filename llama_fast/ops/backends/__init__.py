"""The backends: which exist (table.py), which are available, and which one serves an op."""
