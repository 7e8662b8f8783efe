"""The service: recommendations of the champion over HTTP, the events that come back, and how fast it answers.

Nothing is trained here, and everything that decides an order is in `recsys.recommender`.
"""
