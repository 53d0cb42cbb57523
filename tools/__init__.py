"""The command line and the operator's tools: the one place that wires the parts together."""
