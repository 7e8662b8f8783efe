"""A two-stage recommender, as a library: data, features, retrieval, ranking, evaluation, bundles."""
