"""`trisite pair`: the copy relations between the sites, by hand."""
