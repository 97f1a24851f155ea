"""Thinkback: task-specific out-of-distribution detection, in closed form."""
