"""What is told of a running server: metrics, logs, traces, recordings."""
