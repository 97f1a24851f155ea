"""Speed and memory, measured side by side: ``python -m benchmarks`` writes them to
``results/benchmarks``.

One module a group, each with ``run(context) -> list of records``. Every time is a median of
alternating rounds in one process, and every ratio is formed within a round, so that a machine that
slows down slows both sides of it.
"""
