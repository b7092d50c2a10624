#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/style.py - the house rules that a program can check.

Layering of includes, one dependency in one file, banned calls, file headers,
file sizes, the top level, text that must not be in the tree, formatting.
Prints one line a finding; exit 1 if there are any."""
import os
import re
import shutil
import subprocess
import sys

root = os.environ.get("MB_SOURCE_DIR") or os.path.abspath(
    os.path.join(os.path.dirname(__file__), "..", ".."))
os.chdir(root)
found = []


def say(where, what):
    found.append(f"{where}: {what}")


def tracked():
    """Files of the project: git's list, or a walk where there is no git."""
    try:
        out = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-co",
             "--exclude-standard"], capture_output=True, text=True, check=True)
        names = out.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = []
        for folder, dirs, files in os.walk("."):
            dirs[:] = [d for d in dirs if d not in ("build", ".git")]
            names += [os.path.relpath(os.path.join(folder, f), ".")
                      for f in files]
    return sorted(n for n in names if os.path.isfile(n))


files = tracked()
sources = [f for f in files if f.endswith((".c", ".h", ".inc", ".cpp"))]
text = {f: open(f, encoding="utf-8").read() for f in sources}

# ---- top level ----

allowed = {"client", "daemon", "model", "store", "tools", "tests", "cmake",
           "CMakeLists.txt", "CMakePresets.json", "README.md", "LICENSE",
           "CHANGELOG.md", "CONTRIBUTING.md"}
for f in files:
    top = f.split("/")[0]
    if top not in allowed and not top.startswith("."):
        say(f, "the layout does not name this at the top level")

# ---- layers: which folders a folder may include mb_*.h from ----

layer = lambda f: ("client/base" if f.startswith("client/base/") else
                   "client/wire" if f.startswith("client/wire/") else
                   f.split("/")[0])
may = {
    "client/base": {"client/base"},
    "client/wire": {"client/base", "client/wire"},
    "client": {"client", "client/base", "client/wire"},
    "model": {"model", "client/base"},
    "store": {"store", "client/base", "client/wire"},
    "daemon": {"daemon", "store", "model", "client", "client/wire",
               "client/base"},
    "tools": {"tools", "daemon", "store", "model", "client", "client/wire",
              "client/base"},
}
where = {}
for f in files:
    if f.endswith((".h", ".inc")) and not f.startswith("tests/"):
        where.setdefault(os.path.basename(f), layer(f))
for f in sources:
    here = layer(f)
    if here == "tests":
        continue
    for name in re.findall(r'^#include "([^"]+)"', text[f], re.M):
        base = os.path.basename(name)
        home = where.get(base)
        if home is None and base.endswith("_html.h"):
            continue  # made by the build, see cmake/Embed.cmake
        if home is None:
            say(f, f"includes {name}, which is not in the tree")
        elif home not in may.get(here, set()):
            say(f, f"{here} must not include {name} of {home}")
        elif home != here and not (base.startswith("mb_") or
                                   base == "membank.h"):
            say(f, f"includes {name}, a private header of {home}")

# ---- one dependency, one place ----

homes = {
    r"lmdb\.h": ["store/kv.c"],
    r"faiss/": ["store/vindex.c", "store/faiss_shim.cpp",
                "store/faiss_shim.h"],
    # store and model do not know each other: each has one file of BLAS.
    r"cblas\.h": ["model/blas.c", "store/vindex.c"],
    r"msgpack": ["client/wire/"],
    r"zmq\.h": ["daemon/server.c", "client/client.c"],
    r"zstd\.h": ["store/text.c", "tools/common/"],
    r"zlib\.h": ["tools/common/"],
    r"utf8proc\.h": ["store/analyze.c"],
    r"libstemmer\.h": ["store/analyze.c"],
    r"xxhash\.h": ["client/base/"],
}
for f in sources:
    if f.startswith("tests/"):
        continue
    for name in re.findall(r"^\s*#\s*include <([^>]+)>", text[f], re.M):
        for pattern, place in homes.items():
            if re.match(pattern, name) and not any(
                    f.startswith(p) for p in place):
                say(f, f"<{name}> belongs to {' '.join(place)} alone")

# ---- calls and words ----

banned = re.compile(
    r"\b(strcpy|strcat|sprintf|vsprintf|strtok|atoi|atol|atof|scanf|sscanf|"
    r"fscanf|rand|srand|alloca|gets)\s*\(")
bare = re.compile(r"(?<![\w.>])(malloc|calloc|realloc|free|strdup)\s*\(")
for f in sources:
    code = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"),
                  text[f], flags=re.S)
    code = re.sub(r"//[^\n]*", "", code)
    code = re.sub(r'"(\\.|[^"\\\n])*"', '""', code)
    for number, line in enumerate(code.splitlines(), 1):
        m = banned.search(line)
        if m:
            say(f"{f}:{number}", f"{m.group(1)} is not used here")
        if (not f.startswith(("client/base/", "tests/"))
                and not f.startswith("client/examples/")):
            m = bare.search(line)
            if m:
                say(f"{f}:{number}", f"bare {m.group(1)}: use mb_alloc")
        if re.match(r"\s*#\s*if 0\b", line):
            say(f"{f}:{number}", "dead code")
        if re.search(r"#\s*include\s*<assert\.h>", line):
            say(f"{f}:{number}", "libc assert: use MB_ASSERT")
    for number, line in enumerate(text[f].splitlines(), 1):
        if re.search(r"\b(FIXME|XXX)\b", line):
            say(f"{f}:{number}", "left open")
        if re.search(r"\bTODO\b(?!: \S+)", line):
            say(f"{f}:{number}", "a TODO names its consequence")
    if f.startswith(("client/", "store/", "model/")) and f.endswith(".c") \
            and "/examples/" not in f and not f.endswith("cli.c") \
            and not os.path.basename(f).startswith("cli"):
        if re.search(r"\b(printf|puts|fprintf|perror)\s*\(", code) and \
                "mb_panic" not in code:
            say(f, "writes to the terminal: use the log hook")
        if re.search(r"\bexit\s*\(", code) and "abort" not in code:
            say(f, "only main and tools exit")

# ---- headers, sizes ----

for f in sources:
    head = text[f][:400]
    if "SPDX-License-Identifier: Apache-2.0" not in head:
        say(f, "no SPDX line at its head")
    if f"{f} - " not in head and not f.startswith("client/examples/"):
        say(f, f"its head does not say '{f} - <what for>'")
    lines = text[f].count("\n")
    if lines > 1200:
        say(f, f"{lines} lines: split it at 1,200")
    if not text[f].endswith("\n"):
        say(f, "no newline at its end")

for folder in ("client", "store", "model", "daemon", "tools", "tests"):
    readme = f"{folder}/README.md"
    if not os.path.exists(readme):
        say(readme, "missing")
    elif open(readme, encoding="utf-8").read().count("\n") > 60:
        say(readme, "more than 60 lines")

# ---- what must not stand in the tree ----

for f in files:
    if f.endswith((".gguf", ".bin", ".png", ".zst", ".gz", ".jsonl")) \
            or "/corpus/" in f or f == "tests/integration/style.py":
        continue
    try:
        body = open(f, encoding="utf-8").read()
    except UnicodeDecodeError:
        continue
    for number, line in enumerate(body.splitlines(), 1):
        if re.search(r"(?<![\w.])/(work|root|home/\w+)/", line):
            say(f"{f}:{number}", "a path of some machine")
        if line != line.rstrip() and not f.endswith((".md", ".hex", ".inp")):
            say(f"{f}:{number}", "trailing white space")

# ---- formatting ----

formatter = next((c for c in ("clang-format-14", "clang-format")
                  if shutil.which(c)), None)
version = formatter and subprocess.run(
    [formatter, "--version"], capture_output=True, text=True).stdout
if version and " 14." in version:
    out = subprocess.run([formatter, "--dry-run"] + [
        f for f in sources if not f.endswith(".cpp")],
        capture_output=True, text=True).stderr
    for line in out.splitlines():
        m = re.match(r"(\S+?:\d+):\d+: warning:", line)
        if m:
            say(m.group(1), "clang-format would change this")
else:
    print("note: no clang-format 14, formatting not checked")

for line in found[:100]:
    print(line)
if len(found) > 100:
    print(f"... and {len(found) - 100} more")
print(f"style: {len(sources)} source files, {len(found)} findings")
sys.exit(1 if found else 0)
