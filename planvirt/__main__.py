"""python -m planvirt"""

import sys

from planvirt.start import main

sys.exit(main())
