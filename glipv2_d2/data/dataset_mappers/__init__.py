"""From dataset dicts to model inputs, one mapper per task."""
