"""The making of the book: chapters executed, pages built, and the figures and the demo that they
show.
"""
