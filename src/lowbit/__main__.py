"""`python -m lowbit` is `lowbit`."""

from lowbit.cli.main import main

main()
