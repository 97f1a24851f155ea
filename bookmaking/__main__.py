"""``python -m bookmaking``: see :mod:`bookmaking.runner`."""

import sys

from .runner import main

sys.exit(main())
