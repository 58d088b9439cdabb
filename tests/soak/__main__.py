"""The soak by hand: python -m tests.soak --minutes 30 --seed 0."""

import sys

from tests.soak.command import main

sys.exit(main())
