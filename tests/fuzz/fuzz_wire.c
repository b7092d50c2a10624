/* SPDX-License-Identifier: Apache-2.0
 * tests/fuzz/fuzz_wire.c - any bytes as a message.
 *
 * What must hold: no input crashes the reader; the check without a tree and
 * the parse agree on everything but keys that come twice; memory is bounded by
 * the size of the message; a value that was read and written again reads as
 * the same bytes the second time. */
#include <string.h>

#include "mb_base.h"
#include "mb_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* 24 bytes a value and 40 a pair; the least pair has two bytes. */
#define TREE_PER_BYTE 24
#define TREE_FIXED    128

static struct mb_buffer
write_again(const struct mb_value *v)
{
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, (size_t)64 << 20);
    mb_writer_init(&w, &buf);
    mb_write_value(&w, v);
    MB_ASSERT(w.status == MB_OK);
    return buf;
}

/* Views and floats (NaN) aside, a second reading must give the same bytes. */
static void
check_round_trip(const struct mb_value *v)
{
    struct mb_buffer once = write_again(v);
    struct mb_arena *arena = mb_arena_new((size_t)64 << 20);
    const struct mb_value *again = NULL;
    MB_ASSERT(arena);
    MB_ASSERT(mb_wire_parse(mb_buffer_slice(&once), NULL, true, arena, &again,
                  NULL) == MB_OK);
    struct mb_buffer twice = write_again(again);
    MB_ASSERT(mb_slice_equal(mb_buffer_slice(&once), mb_buffer_slice(&twice)));
    mb_buffer_fini(&once);
    mb_buffer_fini(&twice);
    mb_arena_free(arena);
}

/* Every way to ask for an argument, on whatever is there; how many failed. */
static size_t
ask_everything(const struct mb_value *v, struct mb_arena *arena)
{
    struct mb_error err;
    struct mb_slice s;
    uint64_t n;
    size_t dim;
    double d;
    bool b;
    const float *vector;
    const struct mb_value *found;
    size_t bad = 0;
    for (size_t i = 0; v->type == MB_TYPE_MAP && i < v->map.n && i < 8; i++) {
        const struct mb_pair *pair = &v->map.pairs[i];
        char key[64] = {0};
        memcpy(key, pair->key.data, pair->key.size < 63 ? pair->key.size : 63);
        bad += mb_arg_str(v, key, true, &s, &err) != MB_OK;
        bad += mb_arg_u64(v, key, 1, 1, 100, &n, &err) != MB_OK;
        bad += mb_arg_double(v, key, 0, -1, 1, &d, &err) != MB_OK;
        bad += mb_arg_bool(v, key, false, &b, &err) != MB_OK;
        bad += mb_arg_array(v, key, true, &found, &err) != MB_OK;
        bad += mb_arg_map(v, key, true, &found, &err) != MB_OK;
        bad += mb_value_vector(
                   &pair->value, key, 0, arena, &vector, &dim, &err) != MB_OK;
    }
    return bad;
}

/* What is found without a tree is what the tree has. */
static void
check_find(struct mb_slice message, const struct mb_value *v)
{
    struct mb_slice raw = mb_wire_find(message, "args");
    const struct mb_value *args = mb_value_get(v, "args");
    MB_ASSERT((raw.size > 0) == (args != NULL));
    if (args && args->type == MB_TYPE_STR)
        MB_ASSERT(mb_slice_equal(args->s, mb_wire_raw_str(raw)));
}

/* Looking in must not need a check before; what is seen lies inside. */
static void
peek_anyway(struct mb_slice message)
{
    static const char *const keys[] = {"id", "op", "args"};
    struct mb_slice values[3];
    mb_wire_peek(message, keys, values, 3);
    for (size_t i = 0; i < 3; i++) {
        if (values[i].size == 0)
            continue;
        MB_ASSERT(values[i].data > message.data);
        MB_ASSERT(
            values[i].data + values[i].size <= message.data + message.size);
        MB_ASSERT(mb_wire_raw_str(values[i]).size < values[i].size);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct mb_slice message = mb_slice_of(data, size);
    struct mb_error err;
    peek_anyway(message);
    for (int allow = 0; allow < 2; allow++) {
        struct mb_arena *arena = mb_arena_new((size_t)64 << 20);
        const struct mb_value *v = NULL;
        MB_ASSERT(arena);
        mb_status checked = mb_wire_check(message, NULL, allow, &err);
        mb_status st = mb_wire_parse(message, NULL, allow, arena, &v, &err);
        MB_ASSERT(mb_arena_bytes(arena) <= size * TREE_PER_BYTE + TREE_FIXED);
        MB_ASSERT(checked == MB_OK || checked == st);
        MB_ASSERT(st == MB_OK || checked != MB_OK ||
                  (st == MB_ERR_BAD_MESSAGE && strstr(err.text, "twice")));
        if (st == MB_OK) {
            MB_ASSERT(ask_everything(v, arena) <= 8 * 7);
            check_round_trip(v);
            check_find(message, v);
        } else {
            MB_ASSERT(mb_utf8_is_valid(mb_slice_cstr(err.text), NULL));
        }
        mb_arena_free(arena);
    }
    return 0;
}
