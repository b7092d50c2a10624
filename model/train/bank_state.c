/* SPDX-License-Identifier: Apache-2.0
 * model/train/bank_state.c - the state of one block in training.
 *
 * Bytes: magic "MBBS", version u16, zero u16, steps u64, tokens u64, bytes of
 * the record u64, then the F32 record, the moments and the squares (floats like
 * the record's weights), then a u32, the low half of the hash of all before it.
 * The block works on these bytes in place, so that saving copies nothing.
 * Floats are the machine's, which must be little-endian, as for GGUF. */
#include "bank_train.h"

#include <math.h>
#include <string.h>

#define VERSION 1u
#define HEADER  32u
#define TAIL    4u

static const uint8_t magic[4] = {'M', 'B', 'B', 'S'};

/* ---- where things are ---- */

static size_t
n_weights(const struct mb_bank_shape *shape, size_t rows)
{
    return (size_t)mb_bank_n_params(shape, rows);
}

size_t
bank_slot_n(const struct bank_slot *s, const struct mb_bank_shape *shape)
{
    return n_weights(shape, s->rows);
}

float *
bank_slot_weights(const struct bank_slot *s)
{
    return (float *)(void *)(s->bytes + HEADER + MB_BANK_HEADER);
}

/* Floats of each of the three arrays. */
static size_t
floats_of(const struct bank_slot *s)
{
    return (s->size - HEADER - MB_BANK_HEADER - TAIL) / (3 * sizeof(float));
}

float *
bank_slot_moments(const struct bank_slot *s)
{
    return bank_slot_weights(s) + floats_of(s);
}

float *
bank_slot_squares(const struct bank_slot *s)
{
    return bank_slot_weights(s) + 2 * floats_of(s);
}

size_t
bank_state_bytes(const struct mb_bank_shape *shape, size_t rows)
{
    return HEADER + MB_BANK_HEADER +
           3 * sizeof(float) * n_weights(shape, rows) + TAIL;
}

/* ---- reading ---- */

static mb_status
corrupt(struct mb_error *err, const char *what)
{
    return mb_error_set(err, MB_ERR_CORRUPT, "state of a block: %s", what);
}

mb_status
mb_bank_state_record(struct mb_slice state, struct mb_slice *record,
    uint64_t *n_steps, struct mb_error *err)
{
    const uint8_t *p = state.data;
    if (state.size < HEADER + MB_BANK_HEADER + TAIL)
        return corrupt(err, "cut");
    if (memcmp(p, magic, sizeof(magic)) != 0)
        return corrupt(err, "does not begin with MBBS");
    if (mb_get_le16(p + 4) != VERSION || mb_get_le16(p + 6) != 0)
        return corrupt(err, "unknown version");
    uint64_t size = mb_get_le64(p + 24);
    if (size < MB_BANK_HEADER || size > state.size - HEADER - TAIL ||
        state.size - HEADER - TAIL != 3 * size - 2 * MB_BANK_HEADER)
        return corrupt(err, "sizes do not fit");
    if (mb_get_le32(p + state.size - TAIL) !=
        (uint32_t)mb_hash64(p, state.size - TAIL, 0))
        return corrupt(err, "the checksum is wrong");
    *record = mb_slice_of(p + HEADER, (size_t)size);
    if (n_steps)
        *n_steps = mb_get_le64(p + 8);
    return MB_OK;
}

/* Is it this slot's block? */
static mb_status
check_block(const struct bank_slot *s, const struct mb_bank_shape *shape,
    const struct mb_bank_draw *draw, const struct mb_bank_block *b,
    struct mb_error *err)
{
    if (b->node != s->node || b->level != s->level || b->rows != s->rows ||
        b->d_model != shape->d_model || b->n_layers != shape->n_layers ||
        b->first_layer != shape->first_layer ||
        memcmp(b->anchor, draw->anchor, sizeof(b->anchor)) != 0)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "block of node %llu, level %zu, %zu rows in %zu layers: the job "
            "has node %llu, level %zu, %zu rows in %zu layers, or another "
            "model",
            (unsigned long long)b->node, b->level, b->rows, b->n_layers,
            (unsigned long long)s->node, s->level, s->rows, shape->n_layers);
    return MB_OK;
}

static mb_status
take_state(struct bank_slot *s, const struct mb_bank_shape *shape,
    const struct mb_bank_draw *draw, struct mb_slice state,
    struct mb_error *err)
{
    struct mb_slice record;
    struct mb_bank_block b;
    mb_status st = mb_bank_state_record(state, &record, NULL, err);
    if (st == MB_OK)
        st = mb_bank_block_open(record, &b, err);
    if (st == MB_OK)
        st = check_block(s, shape, draw, &b, err);
    if (st == MB_OK && (b.type != MB_BANK_F32 || state.size != s->size))
        st = corrupt(err, "its record is not F32");
    if (st != MB_OK)
        return st;
    memcpy(s->bytes, state.data, s->size);
    s->n_steps = mb_get_le64(s->bytes + 8);
    s->n_tokens = mb_get_le64(s->bytes + 16);
    return MB_OK;
}

static mb_status
take_record(struct bank_slot *s, const struct mb_bank_shape *shape,
    const struct mb_bank_draw *draw, struct mb_slice record,
    struct mb_error *err)
{
    struct mb_bank_block b;
    mb_status st = mb_bank_block_verify(record, err);
    if (st == MB_OK)
        st = mb_bank_block_open(record, &b, err);
    if (st == MB_OK)
        st = check_block(s, shape, draw, &b, err);
    if (st == MB_OK)
        st = mb_bank_convert(&b, MB_BANK_F32, s->bytes + HEADER,
            mb_bank_record_bytes(shape, s->rows, MB_BANK_F32), err);
    return st;
}

mb_status
bank_slot_load(struct bank_slot *s, const struct mb_bank_shape *shape,
    const struct mb_bank_draw *draw, struct mb_slice state,
    struct mb_slice record, struct mb_error *err)
{
    s->size = bank_state_bytes(shape, s->rows);
    s->n_steps = s->n_tokens = 0;
    s->is_dirty = false;
    s->bytes = mb_calloc(s->size, 1);
    if (!s->bytes)
        return mb_error_set(
            err, MB_ERR_NOMEM, "state of a block: %zu bytes", s->size);
    mb_status st;
    if (state.size > 0)
        st = take_state(s, shape, draw, state, err);
    else if (record.size > 0)
        st = take_record(s, shape, draw, record, err);
    else
        st = mb_bank_draw(shape, draw, s->bytes + HEADER,
            mb_bank_record_bytes(shape, s->rows, MB_BANK_F32), err);
    if (st != MB_OK)
        bank_slot_drop(s);
    return st;
}

/* ---- writing ---- */

struct mb_slice
bank_slot_seal(struct bank_slot *s, const struct mb_bank_shape *shape)
{
    size_t size = mb_bank_record_bytes(shape, s->rows, MB_BANK_F32);
    struct mb_bank_block b;
    uint8_t *record = s->bytes + HEADER;
    mb_status st = mb_bank_block_open(mb_slice_of(record, size), &b, NULL);
    MB_ASSERT(st == MB_OK); // the header has not changed since it was read
    bank_seal(b, record);
    memcpy(s->bytes, magic, sizeof(magic));
    mb_put_le16(s->bytes + 4, VERSION);
    mb_put_le16(s->bytes + 6, 0);
    mb_put_le64(s->bytes + 8, s->n_steps);
    mb_put_le64(s->bytes + 16, s->n_tokens);
    mb_put_le64(s->bytes + 24, size);
    mb_put_le32(s->bytes + s->size - TAIL,
        (uint32_t)mb_hash64(s->bytes, s->size - TAIL, 0));
    return mb_slice_of(s->bytes, s->size);
}

void
bank_slot_drop(struct bank_slot *s)
{
    mb_free(s->bytes);
    mb_free(s->grad);
    s->bytes = NULL;
    s->grad = NULL;
    s->n_targets = 0;
    s->is_dirty = false;
}
