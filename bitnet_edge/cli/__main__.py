# SPDX-License-Identifier: MIT
"""``python -m bitnet_edge.cli``."""

import sys

from bitnet_edge.cli import main

sys.exit(main())
