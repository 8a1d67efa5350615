"""`python -m vlm_lite` is the command `vlm-lite`."""

import sys

from vlm_lite.cli import main

sys.exit(main())
