"""One reader for each kind of file that a report is made of."""
