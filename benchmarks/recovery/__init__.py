"""What each choice in recovery training brings: trainings of one pruned model that differ in one thing."""
