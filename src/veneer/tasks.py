"""The two tasks: targets, loss and decisions. Knows torch and label names; knows nothing of models, files or metrics."""
