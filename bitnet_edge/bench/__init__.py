# SPDX-License-Identifier: MIT
"""Measuring a model on the machine it runs on.

``measure``, ``work``, ``trace`` and ``gate`` need the standard library and the engine alone;
``peers`` and what it imports are the host's side.
"""
