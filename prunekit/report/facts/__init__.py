"""What the files of a report say, as figures that can be compared."""
