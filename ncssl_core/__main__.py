"""`python -m ncssl_core` is the command `ncssl`."""

from ncssl_core.cli import main

main()
