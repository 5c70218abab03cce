"""From text and a target to a Plan: which units matter, and how wide every layer becomes."""
