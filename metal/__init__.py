# SPDX-License-Identifier: MIT
"""Metal: the same programs on Apple GPUs; `metal/README.md` says what has been verified where."""
