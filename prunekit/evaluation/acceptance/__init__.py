"""Whether a smaller model does a company's own work as well as the dense one: records, statistics, verdict."""
