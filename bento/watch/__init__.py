"""What is told of the service to those who run it: metrics, drift, logs, traces, a log of predictions."""
