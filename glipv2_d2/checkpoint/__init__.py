"""Weights and training states: files, conversion of other people's names, and the checkpointer."""
