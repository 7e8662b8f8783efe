"""What models see: the catalogue, a user's state, daily movie statistics, and the one candidate-feature function."""
