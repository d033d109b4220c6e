"""Named datasets and the readers of their files."""
