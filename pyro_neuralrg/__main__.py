# SPDX-License-Identifier: Apache-2.0
"""``python -m pyro_neuralrg``: see :mod:`pyro_neuralrg.app.cli`."""

import sys

from pyro_neuralrg.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
