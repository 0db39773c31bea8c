"""`python -m qeil_compile.cli`."""

import sys

from .app import main

sys.exit(main())
