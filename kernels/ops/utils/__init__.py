"""What ops share: launches, layouts, int8, and which implementation to take."""
