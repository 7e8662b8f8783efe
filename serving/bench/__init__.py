"""How fast the service answers, and whether it stays right under load: `recsys bench`."""
