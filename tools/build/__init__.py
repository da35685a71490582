"""The build: each lesson in lessons/ becomes two executed notebooks; ``python -m tools.build``.

lesson    a lesson's cells, and the two notebooks that it gives
rules     the house rules, each with the lesson's line, before anything runs
one_run   how one run of a chapter makes, and proves, the outputs of both copies
aside     the part of it that runs in the kernel
execute   running, and what must not be stored
check     whether what is stored is what the lessons give
references    the exercises' references, which the checks import
script    capstone.py
stored    how such a text is written, and whether it is up to date
new       a new chapter's skeleton
"""
