#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/documents.py - what the documents tell one to type works.

Every command in a block of README.md is run, in order, in a folder that has
what it names, and must end well; where the README shows what comes out, that
must come out (times aside). Commands that are not run stand in SKIPPED with
the reason. Then: every option that a document or an example of --help names
exists, and so does every setting. ctest: timeout=180"""
import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

source = os.environ["MB_SOURCE_DIR"]
build = os.environ["MB_BINARY_DIR"]
PROGRAMS = ["membankd", "membank-ingest", "membank-query", "membank-dump",
            "membank-bench", "membank-eval", "membank-generate",
            "membank-train"]
paths = {p: f"{build}/{'daemon' if p == 'membankd' else 'tools'}/{p}"
         for p in PROGRAMS}
missing = [p for p in paths.values() if not os.path.exists(p)]
if missing:
    print("not built:", *missing)
    sys.exit(77)

# What begins like this in a block is a command.
COMMAND = re.compile(r"(\$ )?((membank|tools/|cmake |ctest |zcat |export |"
                     r"build/|cc |python|git |curl |sudo |apt).*)")
# Not run here, and why.
SKIPPED = {
    "tools/": "install packages, build, or run this very test",
    "cmake ": "the programs are built",
    "ctest ": "run this very test",
    "membank-train bank": "wants the daemon stopped; banks.py runs it",
    "export PATH=": "the path is set to the programs under test",
    "membank-bench ": "takes minutes; its options are checked below",
}
# Options of others that documents name, and one that is for the build only.
FOREIGN = {"--preset", "--build", "--test-dir", "--cflags", "--libs",
           "--update", "--man"}
SCORE_TOLERANCE = 0.02  # of the README's figures, for other BLAS kernels
WAIT_S = 60
failures = 0


def check(what, ok, shown=""):
    global failures
    if not ok:
        failures += 1
        print(f"FAILED: {what}\n{shown}")


def read(path):
    with open(os.path.join(source, path), encoding="utf-8") as f:
        return f.read()


# ---- the README's commands ----

def commands_of(text):
    """Commands of indented blocks, each with the lines that stand below it."""
    found = []
    for line in text.splitlines():
        m = re.fullmatch(r"    " + COMMAND.pattern, line)
        if m:
            shows = bool(m[1])
            found.append((m[2], [] if shows else None))
        elif found and found[-1][1] is not None:
            # What a transcript shows; other text or a heading ends it.
            if re.match(r"\S|    == ", line):
                found.append((None, None))
            else:
                found[-1][1].append(line[4:])
    return [f for f in found if f[0] is not None]


def furnish(folder):
    """The files that the README's commands speak of."""
    for name in ("README.md", "store", "daemon", "tools"):
        os.symlink(f"{source}/{name}", f"{folder}/{name}")
    os.symlink(f"{source}/model/weights/anchor.gguf",
               f"{folder}/my-model.gguf")
    books = "".join(json.dumps(
        {"id": f"b{i}", "title": f"Chapter {i}",
         "text": f"Chapter {i}. A whale sinks a ship; O'Brien uses C++ 3.11."})
        + "\n" for i in range(50))
    with open(f"{folder}/books.jsonl", "w", encoding="utf-8") as f:
        f.write(books)
    subprocess.run(["zstd", "-q", f"{folder}/books.jsonl"], check=True)
    with gzip.open(f"{folder}/dump.jsonl.gz", "wt") as f:
        f.write(books)
    os.mkdir(f"{folder}/handbuch")
    with open(f"{folder}/handbuch/seite.txt", "w", encoding="utf-8") as f:
        f.write("Das Handbuch hat eine Seite.\n")
    with open(f"{folder}/questions.jsonl", "w", encoding="utf-8") as f:
        f.write('{"_id": "q1", "text": "which whale sinks a ship"}\n')


def figures(line):
    return [float(x) for x in re.findall(r"-?\d+\.\d+", line)]


def check_output(command, shown, printed):
    """Times differ; scores differ a little where BLAS has other kernels."""
    shown = [x.rstrip() for x in "\n".join(shown).strip().splitlines()]
    printed = [x.rstrip() for x in printed.strip().splitlines()]
    check(f"{command}: not as many lines as in the README",
          len(shown) == len(printed), "\n".join(printed))
    for a, b in zip(shown, printed):
        if re.search(r"\d (ms|s)\b", a):
            # Times and rates.
            a, b = (re.sub(r"[\d.]+ (ms|s|[kMG]?B/s)\b", "N", x)
                    for x in (a, b))
        elif a.lstrip().startswith("score "):
            x, y = figures(a), figures(b)
            if len(x) == len(y) and all(
                    abs(u - v) <= SCORE_TOLERANCE * abs(u)
                    for u, v in zip(x, y)):
                continue
        check(f"{command}: the README shows\n{a}\nand it prints\n{b}", a == b)


def run(command, folder, env):
    p = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=folder,
                       env=env, capture_output=True, text=True,
                       timeout=WAIT_S)
    check(f"{command}: exit {p.returncode}", p.returncode == 0,
          p.stdout + p.stderr)
    return p.stdout


def start(command, folder, env):
    """A daemon, once it can be reached."""
    with open(f"{folder}/log", "a", encoding="utf-8") as log:
        daemon = subprocess.Popen(shlex.split(command), cwd=folder, env=env,
                                  stderr=log)
    until = time.monotonic() + WAIT_S
    while not os.path.exists(f"{folder}/membank.sock"):
        if daemon.poll() is not None or time.monotonic() > until:
            sys.exit(f"{command}: did not start\n{read(folder + '/log')}")
        time.sleep(0.01)
    return daemon


def stop(daemon):
    daemon.send_signal(signal.SIGTERM)
    check("the daemon ends by itself", daemon.wait(timeout=WAIT_S) == 0)


def run_readme(folder):
    furnish(folder)
    env = dict(os.environ, XDG_RUNTIME_DIR=folder, NO_COLOR="1")
    for name in ("MEMBANK_ENDPOINT", "COLUMNS"):
        env.pop(name, None)
    env["PATH"] = f"{build}/daemon:{build}/tools:{env['PATH']}"
    skipped = set()
    n_run = n_shown = 0
    # The README's first questions go to the daemon of tools/quickstart.
    daemon = start("membankd --store ./first", folder, env)
    try:
        for command, shown in commands_of(read("README.md")):
            skip = [s for s in SKIPPED if command.startswith(s)]
            if skip:
                skipped.update(skip)
            elif command.endswith("&"):
                stop(daemon)
                daemon = start(command[:-1], folder, env)
            else:
                line = command.replace("ipc://.../", f"ipc://{folder}/")
                if command.startswith("membank-dump "):
                    # Its tree needs the first fit, which is under way.
                    run("membank-ingest -q -c notes --wait searchable "
                        "README.md", folder, env)
                out = run(line, folder, env)
                n_run += 1
                if shown is not None:
                    check_output(command, shown, out)
                    n_shown += 1
    finally:
        stop(daemon)
    check("commands of the README", n_run >= 15 and n_shown >= 4,
          f"{n_run} were found, {n_shown} of them with their output")
    check("skipped without need", skipped == set(SKIPPED),
          set(SKIPPED) - skipped)
    return n_run


# ---- options and settings ----

def options_of(helps):
    """By program: the options that its help lists."""
    return {p: set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*|-[a-zA-Z])(?![\w-])",
                              "\n".join(x for x in text.splitlines()
                                        if re.match(r"\s+-", x))))
            for p, text in helps.items()}


def options_in(words):
    for word in words:
        if re.match(r"-[a-zA-Z]$|--[a-z]", word):
            yield word.split("=")[0]


def check_command_line(where, line, options):
    """The options of each program in one line of shell."""
    line = re.sub(r"^\$ ", "", re.sub(r"\s#.*", "", line))
    for part in re.split(r"\||&&|;|(?<= )&", line):
        try:
            words = shlex.split(part)
        except ValueError:
            continue  # a piece of prose
        program = os.path.basename(words[0]) if words else ""
        if program in options:
            for option in options_in(words[1:]):
                check(f"{where}: {program} has no {option}",
                      option in options[program])


def documents():
    for folder, folders, files in os.walk(source):
        folders[:] = [f for f in folders
                      if not f.startswith((".", "build"))]
        for name in files:
            if name.endswith(".md"):
                yield os.path.relpath(os.path.join(folder, name), source)


def check_options(helps):
    options = options_of(helps)
    for program, found in options.items():
        check(f"{program}: options of its help", len(found) >= 5, found)
    every = FOREIGN.union(*options.values())
    names = 0
    for path in documents():
        text = read(path)
        code = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
        code += [x[4:] for x in text.splitlines() if x.startswith("    ")]
        for line in code:
            check_command_line(path, line, options)
            # A word of its own, not what is inside of code or of quotes.
            for option in re.findall(r"(?<![^\s`(])--[a-z][a-z-]*\b", line):
                names += 1
                check(f"{path}: no program has {option}", option in every)
    check("options in documents", names >= 30, names)
    for program, text in helps.items():
        for line in text.splitlines():
            check_command_line(f"{program} --help", line.strip(), options)


def check_settings(help_text, config):
    """Settings that documents name, and the defaults that they tell."""
    settings = dict(re.findall(r"^([a-z_]+) = ?(.*)$", config, re.M))
    check("settings of --print-config", len(settings) >= 20, config)
    section = read("README.md").split("\n## Configuration\n")[1].split("\n## ")
    named = re.findall(r"`([a-z_]+)`", section[0])
    limits = read("daemon/PROTOCOL.md").split("\n## 10 ")[1].split("\n## ")[0]
    rows = re.findall(r"\| ([a-z_]+) \| ([\d,]+)( MiB)? \|", limits)
    check("settings in documents", len(named) >= 10 and len(rows) >= 8,
          f"{named} {rows}")
    for name in named + [r[0] for r in rows]:
        check(f"no setting {name}", f"--{name.replace('_', '-')} " in help_text)
    for name, value, unit in rows:
        value = value.replace(",", "") + ("M" if unit else "")
        check(f"PROTOCOL.md: {name} is {settings.get(name)}, not {value}",
              settings.get(name) == value)


def check_example():
    m = re.search(r"`(client/examples/example\.c)` is (\d+) lines",
                  read("README.md"))
    check("the README tells the example's length", m and
          len(read(m[1]).splitlines()) == int(m[2]) < 60)


def main():
    helps = {p: subprocess.run([path, "--help"], check=True, text=True,
                               capture_output=True).stdout
             for p, path in paths.items()}
    check_example()
    check_options(helps)
    check_settings(helps["membankd"], subprocess.run(
        [paths["membankd"], "--print-config"], check=True, text=True,
        capture_output=True).stdout)
    with tempfile.TemporaryDirectory(prefix="mbtest") as folder:
        n = run_readme(folder)
    if failures:
        sys.exit(f"{failures} failures")
    print(f"{n} commands")


main()
