# SPDX-License-Identifier: MIT
"""Exporters: the graph written for other runtimes."""
