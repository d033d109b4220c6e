"""The prediction heads behind the fusion tower."""
