"""`orchestra` in forks of one process that has imported everything: for a tiny run, importing is most of the work.

A line of standard input is a call, a JSON list: the file for its output, then its arguments. A line of output is its
code.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from models.engines.start import vllm_available
    from models.engines.vllm import prepare_process

    prepare_process()
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import trl  # noqa: F401

    import rl.train  # noqa: F401
    import sft.train  # noqa: F401
    from orchestra import cli

    if vllm_available():
        import vllm.v1.engine.llm_engine  # noqa: F401

    for line in sys.stdin:
        output, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(to, stream)
            sys.argv = ["orchestra", *arguments]
            code = 70
            try:
                code = cli.main()
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
