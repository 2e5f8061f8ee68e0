"""The commands of `ddpm-jax`, a module each: its `main(argv)` does the work and returns the exit status.

Reading a command line and printing help imports nothing heavy.  What is refused or fails is an exception, of which
`cli` makes a line on standard error and a status.
"""
