"""`python -m veritune`: the same as the `veritune` command."""

from veritune.commands.main import main

if __name__ == "__main__":
    main()
