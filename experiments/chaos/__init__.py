"""Input that nobody should give, from seeds: what is accepted must be right, all else counted by reason or refused."""
