# SPDX-License-Identifier: MIT
"""Device profiles as YAML, and the JSON Schema they follow; see `bitnet_edge.profiles`."""
