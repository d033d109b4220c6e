"""The training stream: samples of all datasets in an order that is a function of the seed and resumes anywhere."""
