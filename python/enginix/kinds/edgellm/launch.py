"""Run a program of the wheel in the Python that has TensorRT: `launch.py MODULE KEYFILE|- ARGUMENT …`

Executed by path in the runtime's Python, so it imports nothing of enginix. A key is read from its file here,
because on a command line every user of the machine could read it.
"""

import importlib
import sys

if __name__ == "__main__":
    # This file's own directory must not stand before the wheel's packages.
    del sys.path[0]
    module, key_file = sys.argv[1:3]
    sys.argv = [module, *sys.argv[3:]]
    if key_file != "-":
        with open(key_file, encoding="utf-8") as f:
            # One word: a key may begin with a dash.
            sys.argv.append(f"--api-key={f.read().strip()}")
    importlib.import_module(module).main()
