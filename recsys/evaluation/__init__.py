"""Measuring: replay, metrics, bootstrap intervals, the leaderboard of methods and the report that people read.

Stage: evaluate. In: what a method returned for each test event. Out: `leaderboard.json`, tables, pictures, one
page. Absent: training, and any knowledge of how a method makes its list.
"""
