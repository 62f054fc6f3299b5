"""How long `remnant --help` takes, against a bare Python and against importing torch, in turns.

The last line is one JSON object.
"""

import json
import subprocess
import sys
import time

ROUNDS = 7
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "remnant --help": [sys.executable, "-m", "remnant.cli", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    best = {name: min(found) for name, found in times.items()}
    for name, seconds in best.items():
        print(f"{name:15} {seconds:.3f} s")
    help_seconds = best["remnant --help"]
    print(
        json.dumps(
            {
                "help_seconds": round(help_seconds, 3),
                "torch_over_help": round(best["import torch"] / help_seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
