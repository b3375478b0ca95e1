"""`python -m training tune`: a search for hyperparameters that can be stopped and taken up again at any time."""
