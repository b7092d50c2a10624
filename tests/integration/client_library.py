#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/client_library.py - what other people get, and use.

Installs the client library into an empty folder, compiles the example against
it with pkg-config (shared and static) and with CMake, runs each, and the
Python example, against a real daemon. The shared library must export what
membank.h declares, and nothing else."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

source = os.environ["MB_SOURCE_DIR"]
build = os.environ["MB_BINARY_DIR"]
examples = os.path.join(source, "client", "examples")
ANSWER = "The bicycle's key lies behind the clock."


def run(*command, **more):
    """Run to the end; its output. A failure shows all of it."""
    done = subprocess.run(command, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=120,
                          **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


def cached(name):
    """A variable of the build that we are in."""
    with open(os.path.join(build, "CMakeCache.txt"), encoding="utf-8") as f:
        found = re.search(rf"^{name}:\w+=(.*)$", f.read(), re.M)
    return found.group(1) if found else ""


def start_daemon(folder):
    endpoint = f"ipc://{folder}/s"
    log = open(os.path.join(folder, "log"), "w", encoding="utf-8")
    daemon = subprocess.Popen(
        [os.path.join(build, "daemon", "membankd"), "--store",
         os.path.join(folder, "store"), "--listen", endpoint],
        stdout=log, stderr=log)
    until = time.monotonic() + 30
    while not os.path.exists(os.path.join(folder, "s")):
        if daemon.poll() is not None or time.monotonic() > until:
            sys.exit(open(log.name, encoding="utf-8").read())
        time.sleep(0.01)
    return daemon, endpoint


def check_answer(name, output):
    if ANSWER not in output:
        sys.exit(f"{name} printed:\n{output}")
    print(f"{name}: ok")


def check_symbols(library):
    with open(os.path.join(source, "client", "membank.h"),
              encoding="utf-8") as f:
        code = re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S)
    declared = set(re.findall(r"\b(membank_\w+)\(", code))
    lines = run("nm", "-D", "--defined-only", library).splitlines()
    exported = {line.split()[2].split("@")[0] for line in lines
                if line.split()[1] == "T"}
    if declared != exported:
        sys.exit(f"declared, not exported: {declared - exported}\n"
                 f"exported, not declared: {exported - declared}")
    soname = run("readelf", "-d", library)
    if "libmembank.so.0]" not in soname:
        sys.exit("soname is not libmembank.so.0")
    print(f"symbols: {len(exported)}")


def check_compilers(prefix, folder, endpoint, flags):
    """The example, built as a stranger would build it."""
    config = next(os.path.join(d, "membank.pc")
                  for d, _, files in os.walk(prefix) if "membank.pc" in files)
    env = dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(config))
    libdir = os.path.dirname(os.path.dirname(config))
    example = os.path.join(examples, "example.c")
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    cc = cached("CMAKE_C_COMPILER")

    shared = run("pkg-config", "--cflags", "--libs", "membank", env=env)
    program = os.path.join(folder, "shared")
    run(cc, *strict, *flags, example, *shared.split(), "-o", program)
    check_answer("shared", run(program, endpoint, env=dict(
        env, LD_LIBRARY_PATH=libdir)))

    static = run("pkg-config", "--static", "--cflags", "--libs", "membank",
                 env=env).replace("-lmembank", "-l:libmembank.a")
    program = os.path.join(folder, "static")
    run(cc, *strict, *flags, example, *static.split(), "-o", program)
    check_answer("static", run(program, endpoint))

    project = os.path.join(folder, "project")
    os.mkdir(project)
    with open(os.path.join(project, "CMakeLists.txt"), "w",
              encoding="utf-8") as f:
        f.write("cmake_minimum_required(VERSION 3.16)\n"
                "project(stranger C)\n"
                "find_package(membank 0.1 REQUIRED)\n"
                "foreach(kind membank membank_static)\n"
                f"add_executable(with_${{kind}} {example})\n"
                "target_link_libraries(with_${kind} membank::${kind})\n"
                "endforeach()\n")
    run("cmake", "-G", "Ninja", "-S", project, "-B", project + "/build",
        f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_C_COMPILER={cc}",
        f"-DCMAKE_C_FLAGS={' '.join(flags)}")
    run("cmake", "--build", project + "/build")
    for kind in ("membank", "membank_static"):
        check_answer(f"cmake {kind}",
                     run(f"{project}/build/with_{kind}", endpoint))


def main():
    for tool in ("pkg-config", "nm", "readelf", "cmake"):
        if not shutil.which(tool):
            print(f"no {tool}")
            sys.exit(77)
    sanitize = cached("MB_SANITIZE")
    flags = [f"-fsanitize={sanitize}"] if sanitize else []
    if cached("MB_COVERAGE") == "ON":
        flags.append("--coverage")
    with tempfile.TemporaryDirectory(prefix="mbtest") as folder:
        prefix = os.path.join(folder, "prefix")
        run("cmake", "--install", build, "--prefix", prefix,
            "--component", "client")
        library = next(os.path.join(d, "libmembank.so")
                       for d, _, files in os.walk(prefix)
                       if "libmembank.so" in files)
        check_symbols(library)
        daemon, endpoint = start_daemon(folder)
        try:
            check_compilers(prefix, folder, endpoint, flags)
            check_answer("python", run(
                "/usr/bin/python3", os.path.join(examples, "example.py"),
                endpoint))
        finally:
            daemon.terminate()
            daemon.wait(timeout=30)


main()
