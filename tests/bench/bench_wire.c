/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_wire.c - how fast messages are checked and read.
 *
 *   bench_wire [MEGABYTES]
 *
 * Messages of about that size (16), each of another kind; the check alone (no
 * tree), the whole parse, and writing the same again. Seven runs after one to
 * warm up; median and slowest in MB/s, one thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mb_base.h"
#include "mb_wire.h"

#define RUNS 7

static void
check(mb_status st)
{
    if (st == MB_OK)
        return;
    fprintf(stderr, "bench_wire: %s\n", mb_status_text(st));
    exit(1);
}

/* ---- messages ---- */

/* A put of documents whose text repeats `word`. */
static void
write_put(
    struct mb_writer *w, size_t bytes, size_t text_bytes, const char *word)
{
    size_t n = bytes / text_bytes + 1;
    size_t size = strlen(word);
    char *text = mb_alloc(text_bytes);
    for (size_t i = 0; i + size <= text_bytes; i += size)
        memcpy(text + i, word, size);
    text_bytes -= text_bytes % size;
    mb_write_map(w, 1);
    mb_write_cstr(w, "documents");
    mb_write_array(w, n);
    for (size_t i = 0; i < n; i++) {
        mb_write_map(w, 3);
        mb_write_kv_cstr(w, "id", "document-000001");
        mb_write_kv_str(w, "text", mb_slice_of(text, text_bytes));
        mb_write_cstr(w, "meta");
        mb_write_map(w, 2);
        mb_write_kv_uint(w, "year", 1990);
        mb_write_kv_cstr(w, "topic", "measuring");
    }
    mb_free(text);
}

static void
put_english(struct mb_writer *w, size_t bytes)
{
    write_put(w, bytes, 4000, "the quick brown fox jumps over a lazy dog, ");
}

static void
put_short(struct mb_writer *w, size_t bytes)
{
    write_put(w, bytes, 120, "as short as chats are ");
}

static void
put_french(struct mb_writer *w, size_t bytes)
{
    write_put(w, bytes, 4000, "une \xc3\xa9t\xc3\xa9 \xc3\xa0 l'\xc3\xaele ");
}

static void
put_chinese(struct mb_writer *w, size_t bytes)
{
    write_put(w, bytes, 4000, "\xe6\xbc\xa2\xe5\xad\x97\xe6\x96\x87");
}

static void
array_of_floats(struct mb_writer *w, size_t bytes)
{
    mb_write_array(w, bytes / 9);
    for (size_t i = 0; i < bytes / 9; i++)
        mb_write_f64(w, (double)i);
}

static void
array_of_vectors(struct mb_writer *w, size_t bytes)
{
    static const uint8_t vector[1024];
    mb_write_array(w, bytes / 1027);
    for (size_t i = 0; i < bytes / 1027; i++)
        mb_write_bin(w, mb_slice_of(vector, sizeof vector));
}

/* ---- measuring ---- */

static int
compare(const void *a, const void *b)
{
    const uint64_t *x = a;
    const uint64_t *y = b;
    return (*x > *y) - (*x < *y);
}

static void
print_rate(const char *what, size_t bytes, uint64_t ns[RUNS + 1])
{
    qsort(ns + 1, RUNS, sizeof ns[0], compare);
    double mb = (double)bytes * 1e-6;
    printf("  %s %7.0f (%6.0f)", what, mb / ((double)ns[1 + RUNS / 2] * 1e-9),
        mb / ((double)ns[RUNS] * 1e-9));
}

static void
measure(const char *name, void (*write)(struct mb_writer *w, size_t bytes),
    size_t bytes)
{
    const struct mb_wire_limits limits = {.max_values = SIZE_MAX};
    struct mb_buffer buf;
    struct mb_buffer again;
    struct mb_writer w;
    uint64_t ns[3][RUNS + 1];
    mb_buffer_init(&buf, (size_t)4 << 30);
    mb_buffer_init(&again, (size_t)4 << 30);
    mb_writer_init(&w, &buf);
    write(&w, bytes);
    check(w.status);
    struct mb_arena *arena = mb_arena_new(SIZE_MAX);
    for (size_t i = 0; i <= RUNS; i++) {
        const struct mb_value *v = NULL;
        uint64_t t0 = mb_clock_ns();
        check(mb_wire_check(mb_buffer_slice(&buf), &limits, false, NULL));
        uint64_t t1 = mb_clock_ns();
        check(mb_wire_parse(
            mb_buffer_slice(&buf), &limits, false, arena, &v, NULL));
        uint64_t t2 = mb_clock_ns();
        mb_buffer_clear(&again);
        mb_writer_init(&w, &again);
        mb_write_value(&w, v);
        check(w.status);
        uint64_t t3 = mb_clock_ns();
        ns[0][i] = t1 - t0;
        ns[1][i] = t2 - t1;
        ns[2][i] = t3 - t2;
        mb_arena_reset(arena);
    }
    printf("%-18s %5.1f MB", name, (double)buf.size * 1e-6);
    print_rate("check", buf.size, ns[0]);
    print_rate("parse", buf.size, ns[1]);
    print_rate("write", buf.size, ns[2]);
    printf("\n");
    mb_arena_free(arena);
    mb_buffer_fini(&again);
    mb_buffer_fini(&buf);
}

int
main(int argc, char **argv)
{
    size_t megabytes = argc > 1 ? (size_t)strtoull(argv[1], NULL, 10) : 16;
    size_t bytes = megabytes * 1000000;
    printf("bench_wire %s: MB/s, median (slowest) of %d runs, one thread\n",
        MB_VERSION, RUNS);
    measure("put, 4 KB English", put_english, bytes);
    measure("put, 120 B", put_short, bytes);
    measure("put, 4 KB French", put_french, bytes);
    measure("put, 4 KB Chinese", put_chinese, bytes);
    measure("float64 array", array_of_floats, bytes);
    measure("1 KB binaries", array_of_vectors, bytes);
    return 0;
}
