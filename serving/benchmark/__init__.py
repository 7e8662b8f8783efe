"""How fast answers are: `recsys bench latency` and `recsys bench freshness` (docs/latency.md)."""
