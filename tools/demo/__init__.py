"""`trisite demo`: the whole story on one machine, with real files and real kills, and every claim checked."""
