"""What models see: the catalogue, a user's state, daily item statistics, and the one candidate-feature function."""
