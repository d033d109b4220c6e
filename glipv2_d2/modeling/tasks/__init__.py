"""The tasks of the model: the heads that each one trains, how it reads text and image, and how it answers."""
