"""The tested library of the course: packages of modules of one idea. ARCHITECTURE.md says what is where.

Nothing is imported here, because Colab imports :mod:`utils.course.colab` before anything is installed.
"""
