"""Start-up of hostctl: ``--help``, and a whole ``hostctl run`` of a trivial function, image cached.

The floor of the same run is a bare interpreter, and one that imports click.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import daemon, ratio, report, summary, timed

TRIVIAL = """
import hostd

app = hostd.App("trivial")

@app.function(image=hostd.Image.debian_slim())
def answer() -> int:
    return 42

@app.local_entrypoint()
def main() -> None:
    print(answer.remote())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()

    with daemon() as process, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trivial.py"
        file.write_text(TRIVIAL)

        def run(*command: str) -> None:
            subprocess.run(
                [sys.executable, *command], env=process.environ, check=True, capture_output=True
            )

        cases = {
            "python": ("-c", "pass"),
            "python_click": ("-c", "import click"),
            "help": ("-m", "hostd.cli", "--help"),
            "version": ("-m", "hostd.cli", "--version"),
            "run_trivial": ("-m", "hostd.cli", "run", str(file)),
        }
        run(*cases["run_trivial"])
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, command in cases.items():
                times[name].append(timed(lambda command=command: run(*command)))  # type: ignore[misc]
    figures = {name: summary(values) for name, values in times.items()}
    report(
        "cli_startup",
        {
            **figures,
            "help_vs_bare_python": ratio(
                figures["help"]["median_ms"], figures["python"]["median_ms"]
            ),
            "bars": {"help_median_ms": "< 100", "run_trivial_median_ms": "<= 500"},
        },
    )


if __name__ == "__main__":
    main()
