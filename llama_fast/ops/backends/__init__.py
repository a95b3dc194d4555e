"""The backends: what there is (table.py), what is here, and which one serves an op."""
