"""What models say of logged requests: the deployed one of prompts and answers, and how far it follows the dense one."""
