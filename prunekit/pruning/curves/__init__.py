"""What each width of each layer costs in loss."""
