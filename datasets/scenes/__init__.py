"""What StampWorld and ShapeWorld are made by: cut-outs and backgrounds, scenes composed of them, and their files."""
