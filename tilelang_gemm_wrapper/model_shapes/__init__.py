"""From a checkpoint's tensor names and shapes to the layers that engines run; shape files of known models."""
