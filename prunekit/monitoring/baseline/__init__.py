"""What a healthy log looks like: made at release from a reference log, kept in base.json."""
