"""The remote copy: pairs and their states, the wire, the site daemon, fencing, procedures."""
