"""`python -m rerail_operator`: the operator in a cluster."""

import sys

from rerail_operator.shell.main import main

sys.exit(main())
