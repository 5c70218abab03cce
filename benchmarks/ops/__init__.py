"""Single ops, checked against float64."""
