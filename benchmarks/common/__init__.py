"""What every measurement needs: timing, records, failures, what it ran on."""
