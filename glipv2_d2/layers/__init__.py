"""Layers that know tensors only: no config, no registry, no notion of detection."""
