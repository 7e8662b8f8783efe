"""Measuring: replay, metrics, bootstrap intervals, the leaderboard of methods, and the report that people read."""
