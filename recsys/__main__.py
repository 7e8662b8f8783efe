"""`python -m recsys`, the same as the console command."""

from recsys.command import main

if __name__ == "__main__":
    main()
