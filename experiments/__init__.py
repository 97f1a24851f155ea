"""The experiments of the book: what was tried, chosen, compared and judged. Nothing that scores
imports them.
"""

import os

# What is committed, and what the book prints, must not depend on the CPU.
os.environ.setdefault("THINKBACK_PRECISION", "float32")
