"""The gateway's entry, started by path: ``-m`` would put the caller's directory first on the module path."""

import os
import sys

if __name__ == "__main__":
    # Started by path, this directory comes first, where request.py would hide a library of that name.
    sys.path.pop(0)
    from enginix.gateway.run import main

    try:
        status = main()
    except ImportError as e:
        from enginix import console
        from enginix.optional_libraries import missing_library

        status = console.report_error(missing_library(e, "gateway") or e)
    sys.stderr.flush()
    # Exit at once: all requests are answered, and LiteLLM's libraries would take seconds to unload.
    os._exit(status)
