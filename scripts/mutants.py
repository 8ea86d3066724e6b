"""Break the protocol on purpose, one fault at a time, and see that the tests notice.

Owns: the list of faults, each a small change of the source, and how one is tried: in a copy of the
checkout, built there. Refuses: to touch the checkout. The copy without a fault has to pass; each
copy with one has to fail, or to hang until its time is over.

What is wrong only when two threads run C at the same moment shows on no machine for certain, and
under a GIL on none: such a fault is one of the model's, whose search finds it every time. The table
says for each which test caught it.

usage: python scripts/mutants.py [NAME...]      all, or those whose names contain a NAME
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = "fastpool/_core.pyx"
HOT = "fastpool/_core.pxd"
FASTPATH = "fastpool/_fastpath.pyx"
BLOCKS = "fastpool/_blocks.pyx"
CALLS = "fastpool/_calls.pyx"

# Seconds for the tests of one mutant; one that hangs is caught.
LIMIT = 180
# Deterministic tests first: they say best what is wrong.
TABLE = ("tests/core/test_transitions.py", "tests/core/test_waiting.py", "tests/core/test_races.py")
ORACLE = ("tests/core/test_stateful.py",)
PLAIN = ("tests/core/test_fastpath.py",)
LEASES = ("tests/pool/test_leases.py", "tests/pool_async/test_coroutines.py")
PACING = ("tests/core/test_pacing.py", "tests/core/test_holding_back.py")
MODEL = "tests/model/test_mutations.py"


@dataclass(frozen=True)
class Mutant:
    """A fault: in *file*, *old*, which stands there once, becomes *new*."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = TABLE + ORACLE


MUTANTS = (
    Mutant(
        "no second look after queueing up",
        CORE,
        "                if self.first == <PyObject *>waiter:\n"
        "                    index = self.claim()\n",
        "                if False:\n                    index = self.claim()\n",
    ),
    Mutant(
        "the second look is for every waiter",
        CORE,
        "                if self.first == <PyObject *>waiter:\n"
        "                    index = self.claim()\n",
        "                if True:\n                    index = self.claim()\n",
    ),
    Mutant(
        "a return serves nobody",
        CORE,
        "        self.publish(entry.index, new_turn)\n"
        "        if fp_load_seq(&self.attention):\n            self.serve(False, new_turn)\n",
        "        self.publish(entry.index, new_turn)\n",
    ),
    Mutant(
        "a return that has a slot to hand on leaves it with the waiter that gave up",
        CORE,
        "        if pass_on or fp_load_seq(&self.attention):\n"
        "            self.serve()\n        return self.collect(waiter)\n",
        "        if pass_on or fp_load_seq(&self.attention):\n"
        "            self.serve()\n        return None\n",
    ),
    Mutant(
        "a woken waiter that gives up wakes nobody",
        CORE,
        "        if pass_on or fp_load_seq(&self.attention):\n            self.serve()\n",
        "",
    ),
    Mutant(
        "a waiter that has found a slot wakes nobody",
        CORE,
        'and the next in the queue asleep."""\n'
        "        if fp_load_seq(&self.attention):\n            self.serve()\n",
        'and the next in the queue asleep."""\n',
    ),
    Mutant(
        "a waiter is woken twice",
        CORE,
        "            head.token |= asleep[0]\n",
        "",
        ORACLE,
    ),
    Mutant(
        "what is held back is lent at the next return all the same",
        CORE,
        "self.present - self.n_free() >= self.width",
        "False",
        PACING,
    ),
    Mutant(
        "nobody looks after a stall",
        CORE,
        "            if self.lookout == <PyObject *>waiter:\n                until",
        "            if False:\n                until",
        PACING,
    ),
    Mutant(
        "who gives up leaves what is held back",
        CORE,
        "index = self.claim() if self.width else -1",
        "index = -1",
        PACING,
    ),
    Mutant(
        "a connection that leaves the table counts as lent",
        CORE,
        "        self.present -= 1\n",
        "",
        PACING,
    ),
    Mutant(
        "a trial that fails is kept",
        "fastpool/_pacing.pyx",
        "        self.width = self.kept\n",
        "",
        PACING,
    ),
    Mutant(
        "a lookout that is served hands that on to nobody",
        CORE,
        "                    self.pacer.came(now - waiter.granted)\n"
        "                lookout = self.appoint_lookout()\n",
        "                    self.pacer.came(now - waiter.granted)\n",
        PACING,
    ),
    Mutant(
        "a lookout that gives up hands that on to nobody",
        CORE,
        "GONE)\n            lookout = self.appoint_lookout()\n",
        "GONE)\n            lookout = None\n",
        PACING,
    ),
    Mutant(
        "when holding back begins nobody is woken to look after it",
        CORE,
        "return self.appoint_lookout() if before == 0 else None",
        "return None",
        PACING,
    ),
    Mutant(
        "a lookout that has left is still taken for one",
        CORE,
        "            if self.lookout == <PyObject *>waiter:\n                self.lookout = NULL\n",
        "",
        PACING,
    ),
    Mutant(
        "a lending does not bump the generation",
        HOT,
        "(((fp_peek(&slot.word) >> 8) + 1) << 8) | IN_USE",
        "((fp_peek(&slot.word) >> 8) << 8) | IN_USE",
    ),
    Mutant(
        "a return does not compare the generation",
        HOT,
        "(generation >= 0 and (word >> 8) != <uint64_t>generation)",
        "False",
    ),
    Mutant(
        "a granted slot can be returned before its waiter has come for it",
        HOT,
        "        if slot.conn != NULL:       # granted to a waiter that has not come for it yet\n"
        "            return NOT_LENT\n",
        "",
    ),
    Mutant(
        "a granted slot is taken for lent when its session ends",
        CORE,
        "                elif (word & 0xFF) == IN_USE and slot.conn == NULL:\n",
        "                elif (word & 0xFF) == IN_USE:\n",
    ),
    Mutant(
        "a closed table does not shut out who waits",
        CORE,
        "                if self.first != NULL:\n"
        "                    waiter = <Waiter>self.first\n"
        "                    self.settle(waiter, SHUT, -1, fp_now())\n"
        "                elif",
        "                if",
    ),
    Mutant(
        "a connect that lands does not look whether the table is closed",
        CORE,
        "            closed = fp_load(&self.is_closed) != 0\n            if not closed:\n",
        "            closed = False\n            if not closed:\n",
    ),
    Mutant(
        "a slot beyond the maximum is replaced",
        CORE,
        "            if self.max_size and self.size > self.max_size:\n"
        "                replace = False\n",
        "",
    ),
    Mutant(
        "a resize serves nobody",
        CORE,
        "            raise MemoryError\n        if fp_load_seq(&self.attention):\n"
        "            self.serve()\n",
        "            raise MemoryError\n",
        ORACLE + TABLE,
    ),
    Mutant(
        "a return keeps what a resize has made one too many",
        FASTPATH,
        "            and not fp_load(&table.is_surplus))",
        "            )",
        PLAIN,
    ),
    Mutant(
        "a lease is of the class that its connection had at the first one",
        BLOCKS,
        "entry.lease_version == fp_version(conn) != 0",
        "True",
        LEASES,
    ),
    Mutant(
        "a connection of which no lease can be made stays lent",
        "fastpool/pool.py",
        "            return cast(CT, leases.lease(self, conn))\n"
        "        except Exception:  # of a class that can't be derived from\n"
        "            self.putconn(conn)\n",
        "            return cast(CT, leases.lease(self, conn))\n        except Exception:\n",
        LEASES,
    ),
    Mutant(
        "an awaited checkout keeps its lease",
        CALLS,
        "if came == RETURNED and self.is_block:",
        "if came == RETURNED:",
        LEASES,
    ),
    Mutant(
        "who waited is lent what a drain has made too old",
        FASTPATH,
        "    if table.slot(entry.index).epoch != fp_peek(&table.epoch):\n"
        "        return pool._acquire_another",
        "    if False:\n        return pool._acquire_another",
        ("tests/core/test_races.py",),
    ),
    Mutant(
        "who queues up does not look for room that was freed since",
        FASTPATH,
        "            if table.has_room():        # since the look above: a connect was given up\n"
        "                pool._connector.grow()\n",
        "",
        ("tests/core/test_races.py",),
    ),
    Mutant(
        "a slot whose borrower has dropped it is forgotten when the telling is interrupted",
        CORE,
        "            self.chunk(index).details[index & LAST].orphan = True\n",
        "            pass\n",
        ("tests/core/test_races.py",),
    ),
)

# Faults of order between threads, which the model shows.
ORDERS = (
    "relaxed bit",
    "relaxed attention",
    "read before publish",
    "count after look",
    "word unchecked",
    "fate before word",
    "fate seen once",
    "ghosts heard",
)


def copy_of(tree: Path, to: Path) -> Path:
    """Copy what a build and its tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", ".hypothesis")
    to.mkdir()
    for name in ("fastpool", "tests"):
        shutil.copytree(tree / name, to / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (tree / name).exists():
            shutil.copy2(tree / name, to / name)
    return to


def build(tree: Path) -> None:
    """Compile, where the sources are, what has changed."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"FASTPOOL_DEBUG": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")


def first_failure(tree: Path, tests: tuple[str, ...], limit: float) -> str | None:
    """Run *tests* of a tree up to the first that fails: its name, None if all pass."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider"),
        *("-p", "no:benchmark", "--timeout=30", "-o", "faulthandler_timeout=0", *tests),
    ]
    # Few examples: a fault that they don't reach is not one that the suite is certain to catch.
    environment = os.environ | {"PYTHONPATH": str(tree), "FASTPOOL_EXAMPLES": "60"}
    with subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output = process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return "(none of them ends)"
    if process.returncode == 0:
        return None
    if process.returncode not in (1, 2) and process.returncode > 0:
        sys.exit(f"{' '.join(command)} did not run:\n{output[-3000:]}")
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return found[1] if found else "(the interpreter died)"


def applied(mutant: Mutant, tree: Path) -> None:
    """Make the mutant's change in a copy."""
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f"{mutant.name!r} fits {text.count(mutant.old)} places of {mutant.file}, not one")
    path.write_text(text.replace(mutant.old, mutant.new))


def main() -> int:
    """Try them. Return how many got away."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names
    chosen = [
        mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)
    ]
    orders = [order for order in ORDERS if not names or any(name in order for name in names)]
    escaped = 0

    def tell(name: str, caught: str | None, began: float) -> None:
        nonlocal escaped
        escaped += caught is None
        where = f"caught by {caught}" if caught else "NOT CAUGHT"
        print(f"{name}\n    {where} ({time.monotonic() - began:.0f} s)", flush=True)

    with tempfile.TemporaryDirectory(prefix="fastpool-mutants-") as scratch:
        sound = copy_of(ROOT, Path(scratch) / "sound")
        build(sound)
        needed = sorted({test for mutant in chosen for test in mutant.tests})
        if needed and (failure := first_failure(sound, tuple(needed), 4 * LIMIT)):
            sys.exit(f"without any fault {failure} fails")
        for mutant in chosen:
            began = time.monotonic()
            tree = Path(scratch) / "mutant"
            shutil.copytree(sound, tree, symlinks=True)  # with its dates: only a change is built
            applied(mutant, tree)
            if not mutant.file.endswith(".py"):
                build(tree)
            tell(mutant.name, first_failure(tree, mutant.tests, LIMIT), began)
            shutil.rmtree(tree)
        for order in orders:
            began = time.monotonic()
            test = f"{MODEL}::test_the_search_finds_the_fault[{order}]"
            found = first_failure(sound, (test,), LIMIT) is None
            tell(f"the model: {order}", test if found else None, began)
    print(f"{len(chosen) + len(orders)} faults, {escaped} not caught")
    return escaped


if __name__ == "__main__":
    sys.exit(min(main(), 1))
