"""``python -m s3t``: the command line without its entry point."""

from s3t.cli import main

if __name__ == "__main__":
    main()
