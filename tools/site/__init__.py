"""The course's website: `python -m tools.site` builds site/_build/html of lessons, executed notebooks and site/.

Nothing is run: the pages show what solutions/ has stored. What the build needs (Sphinx and what npm brings) is in an
environment of its own, .venv-site and site/node_modules, which the first build makes.
"""
