"""What makes the notebooks a course: checks, claims, advice, the report of chapter 0, Colab."""
