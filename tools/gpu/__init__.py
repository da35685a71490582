"""What is measured on a GPU: a module for each section, and the records that they write (:mod:`tools.gpu.record`).

A section is a module with a docstring, whose first line says what it measures, and ``run(out, trial, seconds)``: write
records into the folder `out`, stop starting new work after `seconds`, and with `trial` do it all with tiny shapes on
the CPU.
"""
