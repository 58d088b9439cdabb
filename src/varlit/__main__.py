"""`python -m varlit` is the command `varlit`; DDP workers are started this way."""

import sys

from varlit.cli.main import command

if __name__ == "__main__":
    sys.exit(command())
