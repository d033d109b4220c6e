"""The heads that read the output of the fusion tower."""
