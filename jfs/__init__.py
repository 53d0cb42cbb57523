"""The journaling file system: files become block writes; the metadata log; mkfs and fsck. No sites."""
