"""The course as a website: `python -m tools.site` builds it."""
