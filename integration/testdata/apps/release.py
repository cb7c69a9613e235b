"""What a release changes: the tests write this file anew before a reload."""

CODE = 1
HEALTHY = True
