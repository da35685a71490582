"""Damaged files of records: refused in words, or read with every record that wasn't touched."""

from __future__ import annotations

from tools.fuzz.frame import run


def test_a_hundred_damaged_files():
    report = run("records", 100)
    assert report.faults() == [] and report.count("right") > 30 and report.count("clear error") > 100
