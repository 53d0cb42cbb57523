"""The virtual storage area: write to the sync-replicated area, queue the entry, complete. No files."""
