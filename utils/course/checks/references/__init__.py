"""The exercises' right answers, a module for each chapter, generated from the lessons' solution cells."""
