"""The subcommands of ``tools/benchmark.py``, one file each, and what they measure with."""
