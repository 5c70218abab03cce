"""Results of load tests that other programs wrote."""
