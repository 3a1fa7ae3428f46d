"""A file of its own: with ``-m``, Python would put the caller's directory first on the module path."""

import os
import sys

if __name__ == "__main__":
    # Its own directory comes first too, where request.py or config.py would stand before a library.
    sys.path.pop(0)
    from enginix.gateway.run import main

    try:
        status = main()
    except ImportError as e:
        from enginix import console
        from enginix.optional_libraries import missing_library

        status = console.report_error(missing_library(e, "gateway") or e)
    sys.stderr.flush()
    # Everything is answered and removed; LiteLLM's libraries would take seconds to unload.
    os._exit(status)
