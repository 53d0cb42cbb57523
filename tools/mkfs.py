"""`trisite mkfs`: make the file system of a new volume, at all three sites."""
