# SPDX-License-Identifier: MIT
"""Proving that a ``.bte`` file does on a device what its plan says, for CI and for people.

`run.validate` makes a `report.Report` of named checks; `memory_child` is the fresh process whose
memory is measured, so this package's own initialiser imports nothing.
"""
