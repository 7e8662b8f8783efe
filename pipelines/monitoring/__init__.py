"""The commands that look back on what was served: labelled impressions and the skew check."""
