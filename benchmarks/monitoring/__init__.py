"""Whether a watch finds what it should, and how soon: real prompts, real answers, faults made on purpose."""
