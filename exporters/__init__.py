# SPDX-License-Identifier: MIT
"""Importers (`sources`) and exporters (`targets`) around the graph. Host side only."""
