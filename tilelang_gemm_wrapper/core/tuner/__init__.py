"""The tuner: finds the fastest right kernel for each M of each weight shape and writes the config files."""
