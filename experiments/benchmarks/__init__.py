"""Speed and memory, each measured by one command, with the machine it was measured on."""
