"""Where the dense model's distributions come from: computed beside every step, or once and then kept on the disk."""
