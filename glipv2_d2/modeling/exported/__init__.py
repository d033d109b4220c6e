"""The detector as a graph of tensors alone, which other programs can hold."""
