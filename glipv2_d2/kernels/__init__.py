"""Triton kernels, each imported only when it is used, and each equal to a form in plain torch."""
