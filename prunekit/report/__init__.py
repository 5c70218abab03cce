"""What was planned and measured, for people."""
