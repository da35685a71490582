"""What maintainers run: ``python -m tools.NAME`` in the repository's root; each says in its first lines what it does."""
