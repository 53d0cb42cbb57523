"""`trisite verify`: do the sites hold the same? Compared by hash at one point of the stream."""
