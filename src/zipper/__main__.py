"""`python -m zipper`"""

from zipper.cli import main

if __name__ == "__main__":
    main()
