"""Entry point of `python -m zipper`."""

from zipper.cli import console
from zipper.streams import protect_output

if __name__ == "__main__":
    console()
elif __name__ == "__mp_main__":  # a process that one of ours has spawned
    protect_output()
