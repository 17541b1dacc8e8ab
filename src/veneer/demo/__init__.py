"""The built-in data set and a first run on it."""
