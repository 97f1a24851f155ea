"""Tests compute in float32 whatever the CPU has, also in the processes that they start."""

import os

os.environ["THINKBACK_PRECISION"] = "float32"
