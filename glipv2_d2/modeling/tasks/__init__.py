"""What a model input may ask for: for each task the heads it trains, how text and image are read, and its answers."""
