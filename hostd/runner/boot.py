"""What the container's interpreter is started with: ``python3 .../hostd/runner/boot.py DIRECTORY``.

Compiled at every start, since scripts have no bytecode cache: so it is short. It must stay valid
for every Python there is, to say which version is missing. The guard is for multiprocessing, which
imports the main module again in its children.
"""

import sys
import time

if __name__ == "__main__":
    if sys.version_info < (3, 8):
        sys.exit(
            "hostd needs Python 3.8 or later in the image, this is %d.%d" % sys.version_info[:2]
        )
    started_ns = time.monotonic_ns()
    # What this process compiles dies with its container: writing it down would only cost time.
    sys.dont_write_bytecode = True
    here = __file__[: -len("/boot.py")]
    own = here[: -len("/hostd/runner")]
    if sys.path[0] == here:  # not so under PYTHONSAFEPATH
        del sys.path[0]
    sys.path.insert(0, own)
    from hostd.runner.serve import main

    sys.path[0] = "/root"
    sys.path.append(own)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    main(sys.argv[1], started_ns)
