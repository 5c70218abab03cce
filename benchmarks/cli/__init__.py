"""What commands say of themselves, beside what was."""
