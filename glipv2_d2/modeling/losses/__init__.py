"""Loss functions, one subject per file."""
