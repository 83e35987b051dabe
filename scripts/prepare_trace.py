"""python scripts/prepare_trace.py --data_dir DATA [--tasks FOMC,Py150] [--validation_size N --output_dir OUT] [--json]

Checks a downloaded copy of TRACE and, on request, writes one with a validation split carved out of clean train rows.
"""

import sys

from codyra_llm.command import main
from codyra_llm.data.prepare import prepare

if __name__ == "__main__":
    main(lambda: prepare(sys.argv[1:]))
