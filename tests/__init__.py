"""The course's tests.

This file makes `tests` a package: IPython 7 puts a folder on the path that has a package of the same name, which a new
process would else import instead.
"""
