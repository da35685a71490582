"""What maintainers run: ``python -m tools.NAME`` in the root; each says in its first lines what it does."""
