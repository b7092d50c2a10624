/* SPDX-License-Identifier: Apache-2.0
 * tests/support/fuzz_replay.c - main of a fuzz target without libFuzzer.
 *
 * Runs LLVMFuzzerTestOneInput on each file of the folders (or files) given, so
 * that every corpus is a regression test in every build. The name of the file
 * goes to stderr first: if the input crashes the program, it is known.
 * Fails if there is no input at all. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirent.h>

#include "mb_base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    struct mb_buffer buf;
    mb_buffer_init(&buf, (size_t)64 << 20);
    uint8_t part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) {
        if (mb_buffer_append(&buf, part, n) != MB_OK)
            exit(1);
    }
    fclose(f);
    fprintf(stderr, "%s: %zu bytes\n", path, buf.size);
    // A copy of just this size: the sanitizer sees one byte too many.
    uint8_t *exact = mb_alloc(buf.size);
    if (!exact)
        exit(1);
    if (buf.size > 0)
        memcpy(exact, buf.data, buf.size);
    LLVMFuzzerTestOneInput(exact, buf.size);
    mb_free(exact);
    mb_buffer_fini(&buf);
}

/* How many inputs there were. */
static size_t
replay(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir) {
        replay_file(path);
        return 1;
    }
    size_t n_inputs = 0;
    for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        if (e->d_name[0] == '.')
            continue;
        char name[1024];
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        replay_file(name);
        n_inputs++;
    }
    closedir(dir);
    return n_inputs;
}

int
main(int argc, char **argv)
{
    size_t n_inputs = 0;
    for (int i = 1; i < argc; i++)
        n_inputs += replay(argv[i]);
    fprintf(stderr, "%zu inputs\n", n_inputs);
    return n_inputs > 0 ? 0 : 1;
}
