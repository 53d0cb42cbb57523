"""What a load was told is safe, noted outside the mount: register by register.

A register is anything with numbered versions: a file, a block of a file, the rows of a table. A version is
begun before the first call that changes it and done when the last call that makes it durable has returned.
After a fault the register must hold a version from the acknowledged one to the newest begun.
"""

import os
import random
from pathlib import Path
from typing import NamedTuple


class Register(NamedTuple):
    """What is known of one register; version 0 is the state before the first."""

    done: int = 0
    begun: int = 0


class Ledger:
    """The registers of one worker. Lines of plain text: `begin|done VERSION KEY...` and `error SENTENCE`."""

    def __init__(self, path: Path) -> None:
        self.registers: dict[str, Register] = {}
        self.acknowledged = 0
        self.errors: list[str] = []
        if path.exists():
            whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
            for line in whole.splitlines():
                self._take(line)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __getitem__(self, key: str) -> Register:
        return self.registers.get(key, Register())

    @property
    def newest(self) -> int:
        """The highest version of any register that was begun."""
        return max((register.begun for register in self.registers.values()), default=0)

    def begin(self, version: int, *keys: str) -> None:
        """Note that these registers may hold `version` from now on."""
        self._write(f"begin {version} {' '.join(keys)}")

    def done(self, version: int, *keys: str) -> None:
        """Note that `version` was acknowledged as durable."""
        self._write(f"done {version} {' '.join(keys)}")

    def error(self, sentence: str) -> None:
        """Note that a call failed: what was begun was not acknowledged."""
        self._write(f"error {sentence}")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())
        self._take(line)

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "error":
            self.errors.append(rest)
            return
        number, *keys = rest.split()
        version = int(number)
        for key in keys:
            known = self[key]
            done = version if word == "done" else known.done
            self.registers[key] = Register(done, max(version, known.begun))
        self.acknowledged += word == "done"


def content(name: str, version: int, largest: int) -> bytes:
    """The content of a version of a register, made again from its name and number: 1 to `largest` bytes."""
    chance = random.Random(f"{name} {version}")
    return chance.randbytes(chance.randint(1, largest))
