"""What the service shows of itself: metrics, logs, traces and the log of its predictions."""
