"""A process that has imported everything and forks one child for each command.

Run as a script. A line of JSON on stdin is a command; the answers are the number of its process
and, when it has ended, its exit code. So a start costs a second and not five, and a process that is
killed has done little else than what the kill is to interrupt.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any

import torch

WARM = (
    *("varlit.cli.stage", "varlit.cli.running.checkpoint"),
    *("varlit.cli.results.evaluate", "varlit.cli.results.report"),
    *("varlit.training.tokenizer", "varlit.training.var", "varlit.data.digits"),
    *("torch.utils.tensorboard", "sklearn.datasets", "torchvision.transforms"),
)


def main() -> None:
    torch.set_num_threads(1)
    for name in WARM:
        importlib.import_module(name)
    tell("ready")
    for line in sys.stdin:
        job = json.loads(line)
        number = os.fork()
        if not number:
            run(job)
        tell(number)
        _, status = os.waitpid(number, 0)
        tell(os.waitstatus_to_exitcode(status))


def tell(word: object) -> None:
    print(word, flush=True)


def run(job: dict[str, Any]) -> None:
    """Be the command, and end as it ends."""
    code = 1
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(job["folder"])
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        # A shell starts background jobs deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if job["point"]:
            arm(*job["point"])
        sys.argv = ["varlit", *job["words"]]
        from varlit.cli.main import main as command_line

        code = command_line(job["words"])
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # this is where a process would print it
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def arm(place: str, call: int, number: int) -> None:
    """Have this process sent a signal when it calls a function for the so-many-th time.

    Args:
        place: As `package.module:Class.method` or `module:function`.
        call: 1 is the first call.
        number: The signal.
    """
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function, calls = getattr(owner, name), [0]

    def armed(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(owner, name, armed)


if __name__ == "__main__":
    main()
