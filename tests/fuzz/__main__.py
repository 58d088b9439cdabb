"""The file fuzzer by hand: python -m tests.fuzz --count 10000 --seed 0."""

import sys

from tests.fuzz.command import main

sys.exit(main())
