"""What a run tells while it goes on: its phases, how far each one is, and how long it will take."""
