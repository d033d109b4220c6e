"""From what a user or a dataset says to token ids: names or captions, prompts, tokens."""
