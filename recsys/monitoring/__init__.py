"""What was served: the log of answers, and how far two samples of a feature lie apart."""
