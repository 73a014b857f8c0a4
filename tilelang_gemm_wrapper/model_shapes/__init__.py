"""From a checkpoint's tensor names and shapes to the layers that an engine runs, and shape files of known models."""
