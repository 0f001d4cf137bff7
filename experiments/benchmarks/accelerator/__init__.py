"""All that is worth knowing of one accelerator in eight minutes: parts in the order of worth, each in its own process.

A part is a module with a `Size` (its defaults are what a chip takes, `TINY` what a CPU can emulate) and
`cases(size, folder)`: by name, in the order of worth, functions that yield rows. Cases of one process share what they
make.
"""
