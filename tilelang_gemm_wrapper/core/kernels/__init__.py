"""The TileLang kernels, one variant a file, and what they need of a device."""
