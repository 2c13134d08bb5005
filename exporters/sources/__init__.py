# SPDX-License-Identifier: MIT
"""Importers: everything that turns a checkpoint into a `bitnet_edge.graph.Graph`."""
