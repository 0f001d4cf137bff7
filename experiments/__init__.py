"""Commands: each parses flags, turns the ConfigDict into frozen dataclasses, and calls prefjax."""
