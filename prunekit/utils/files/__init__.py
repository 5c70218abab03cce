"""Files and folders: written whole or not at all, read within bounds, never a stranger's to change."""
