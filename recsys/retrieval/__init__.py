"""Candidate sources behind one contract, and how their answers are merged."""
