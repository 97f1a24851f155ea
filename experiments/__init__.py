"""The experiments of the book: what was tried, chosen, compared and judged. Nothing that scores
imports them.
"""
