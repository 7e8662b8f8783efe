"""The service: recommendations of the champion over HTTP, the events that come back, and how fast it answers.

Stage: serving. In: the champion's bundle, the feature store, requests. Out: answers, the event log. Absent: any
training; everything that decides an order is `recsys.recommender`.
"""
