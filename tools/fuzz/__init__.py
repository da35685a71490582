"""Damaged files at random: what of them is refused in words, what is read rightly, and what is neither."""
