/* SPDX-License-Identifier: Apache-2.0
 * model/bank.c - memory blocks: sizes, records, fresh blocks, conversion.
 *
 * A record's header has a checksum of its own, so that an attach need not read
 * the weights; the weights' checksum stands in the header and is looked at by
 * verify alone. Threads: stateless. */
#include "bank_block.h"

#include "mb_gguf_write.h"

#include <math.h>
#include <string.h>

#define VERSION     1u
#define MAX_WIDTH   65536u
#define MAX_LAYERS  1024u
#define MAX_FAN_OUT 65536u
#define Q8_0_BYTES  34u

static const uint8_t magic[4] = {'M', 'B', 'B', 'K'};

const char *
mb_bank_type_name(mb_bank_type type)
{
    static const char *const names[] = {"F32", "BF16", "Q8_0"};
    return (unsigned)type <= MB_BANK_Q8_0 ? names[type] : "unknown";
}

static tensor_type
tensor_type_of(mb_bank_type type)
{
    switch (type) {
    case MB_BANK_F32:
        return TENSOR_F32;
    case MB_BANK_BF16:
        return TENSOR_BF16;
    case MB_BANK_Q8_0:
        break;
    }
    return TENSOR_Q8_0;
}

/* ---- sizes ---- */

/* Rows of 8 and more in eights: what kernels take at a time. */
static size_t
round_rows(double rows)
{
    if (rows >= 8)
        return (size_t)(rows / 8 + 0.5) * 8;
    return rows < 1.5 ? 1 : (size_t)(rows + 0.5);
}

mb_status
mb_bank_shape_make(const struct mb_bank_budget *b, struct mb_bank_shape *out,
    struct mb_error *err)
{
    double fetch = b->fetch > 0 ? b->fetch : 0.1;
    if (b->d_model == 0 || b->d_model > MAX_WIDTH || b->n_layers == 0 ||
        b->n_layers > MAX_LAYERS || b->first_layer >= b->n_layers ||
        b->fan_out < 2 || b->fan_out > MAX_FAN_OUT || b->n_levels == 0 ||
        b->n_levels > MB_BANK_MAX_LEVELS || !(fetch <= 16))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "bank: no blocks for width %zu, layers %zu to %zu, %zu levels of "
            "%zu children, %g of the model",
            b->d_model, b->first_layer, b->n_layers, b->n_levels, b->fan_out,
            fetch);
    struct mb_bank_shape s = {
        .d_model = b->d_model,
        .first_layer = b->first_layer,
        .n_layers = b->n_layers - b->first_layer,
        .n_levels = b->n_levels,
    };
    double ratio = 4.0 / (double)b->fan_out;
    double rows = fetch * (double)b->n_params / (double)mb_bank_n_params(&s, 1);
    double parts = 0;
    if (ratio > 0.5)
        ratio = 0.5;
    for (size_t l = 0; l < b->n_levels; l++)
        parts += pow(ratio, (double)l);
    for (size_t l = 0; l < b->n_levels; l++) {
        s.rows[l] = round_rows(rows / parts * pow(ratio, (double)l));
        if (s.rows[l] > MB_BANK_MAX_ROWS)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "bank: %zu rows at level %zu, at most %u are possible",
                s.rows[l], l + 1, MB_BANK_MAX_ROWS);
    }
    *out = s;
    return MB_OK;
}

uint64_t
mb_bank_n_params(const struct mb_bank_shape *shape, size_t rows)
{
    return (uint64_t)BANK_N_PARTS * shape->n_layers * shape->d_model * rows;
}

size_t
mb_bank_path_rows(const struct mb_bank_shape *shape)
{
    size_t rows = 0;
    for (size_t l = 0; l < shape->n_levels && l < MB_BANK_MAX_LEVELS; l++)
        rows += shape->rows[l];
    return rows;
}

/* Bytes of a row of d_model weights; 0 if it has no whole blocks. */
static size_t
row_bytes(mb_bank_type type, size_t d_model)
{
    size_t values = tensor_block_values(tensor_type_of(type));
    return d_model % values == 0
               ? d_model / values * tensor_block_bytes(tensor_type_of(type))
               : 0;
}

/* Bytes of the weights; 0 if there can be none such. Cannot overflow: all
 * factors are bounded. */
static size_t
data_bytes(size_t d_model, size_t n_layers, size_t rows, mb_bank_type type)
{
    if (d_model == 0 || d_model > MAX_WIDTH || n_layers == 0 ||
        n_layers > MAX_LAYERS || rows == 0 || rows > MB_BANK_MAX_ROWS)
        return 0;
    return BANK_N_PARTS * n_layers * rows * row_bytes(type, d_model);
}

size_t
mb_bank_record_bytes(
    const struct mb_bank_shape *shape, size_t rows, mb_bank_type type)
{
    size_t bytes = (unsigned)type <= MB_BANK_Q8_0
                       ? data_bytes(shape->d_model, shape->n_layers, rows, type)
                       : 0;
    return bytes > 0 ? MB_BANK_HEADER + bytes : 0;
}

/* ---- headers ---- */

/* Offsets: magic 0, version u16 4, type u16 6, node u64 8, level u32 16,
 * d_model u32 20, first_layer u32 24, n_layers u32 28, rows u32 32, zero u32
 * 36, anchor 40, checksum of the weights u64 56, their bytes u64 64, zero u32
 * 72, checksum of the header u32 76. */

static uint32_t
header_sum(const uint8_t *record)
{
    return (uint32_t)mb_hash64(record, MB_BANK_HEADER - 4, 0);
}

void
bank_seal(struct mb_bank_block b, uint8_t *record)
{
    uint8_t *p = record;
    memset(p, 0, MB_BANK_HEADER);
    memcpy(p, magic, sizeof(magic));
    mb_put_le16(p + 4, VERSION);
    mb_put_le16(p + 6, (uint16_t)b.type);
    mb_put_le64(p + 8, b.node);
    mb_put_le32(p + 16, (uint32_t)b.level);
    mb_put_le32(p + 20, (uint32_t)b.d_model);
    mb_put_le32(p + 24, (uint32_t)b.first_layer);
    mb_put_le32(p + 28, (uint32_t)b.n_layers);
    mb_put_le32(p + 32, (uint32_t)b.rows);
    memcpy(p + 40, b.anchor, sizeof(b.anchor));
    mb_put_le64(p + 56, mb_hash64(p + MB_BANK_HEADER, b.data_bytes, 0));
    mb_put_le64(p + 64, b.data_bytes);
    mb_put_le32(p + 76, header_sum(p));
}

static mb_status
corrupt(struct mb_error *err, const char *what)
{
    return mb_error_set(err, MB_ERR_CORRUPT, "memory block: %s", what);
}

static mb_status
check_header(const struct mb_bank_block *b, const uint8_t *p, size_t size,
    struct mb_error *err)
{
    if (b->level > MB_BANK_MAX_LEVELS || b->first_layer >= MAX_LAYERS ||
        mb_get_le32(p + 36) != 0 || mb_get_le32(p + 72) != 0)
        return corrupt(err, "a field of the header is out of range");
    size_t bytes = data_bytes(b->d_model, b->n_layers, b->rows, b->type);
    if (bytes == 0)
        return corrupt(err, "no such shape");
    if (mb_get_le64(p + 64) != bytes || size != MB_BANK_HEADER + bytes)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "memory block: %zu bytes, its shape takes %zu", size,
            MB_BANK_HEADER + bytes);
    return MB_OK;
}

mb_status
mb_bank_block_open(
    struct mb_slice record, struct mb_bank_block *out, struct mb_error *err)
{
    const uint8_t *p = record.data;
    if (record.size < MB_BANK_HEADER)
        return corrupt(err, "shorter than its header");
    if (memcmp(p, magic, sizeof(magic)) != 0)
        return corrupt(err, "does not begin with MBBK");
    if (mb_get_le16(p + 4) != VERSION)
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "memory block of version %u, %u is known",
            (unsigned)mb_get_le16(p + 4), VERSION);
    if (mb_get_le32(p + 76) != header_sum(p))
        return corrupt(err, "the header's checksum is wrong");
    if (mb_get_le16(p + 6) > MB_BANK_Q8_0)
        return corrupt(err, "unknown type");
    struct mb_bank_block b = {
        .node = mb_get_le64(p + 8),
        .level = mb_get_le32(p + 16),
        .d_model = mb_get_le32(p + 20),
        .first_layer = mb_get_le32(p + 24),
        .n_layers = mb_get_le32(p + 28),
        .rows = mb_get_le32(p + 32),
        .type = (mb_bank_type)mb_get_le16(p + 6),
        .data = p + MB_BANK_HEADER,
        .data_bytes = record.size - MB_BANK_HEADER,
    };
    memcpy(b.anchor, p + 40, sizeof(b.anchor));
    mb_status st = check_header(&b, p, record.size, err);
    if (st == MB_OK)
        *out = b;
    return st;
}

static bool
row_is_finite(const struct tensor *W, size_t row)
{
    const uint8_t *p = W->data + row * W->row_bytes;
    bool is_finite = true;
    for (size_t i = 0; i < W->n_cols && W->type == TENSOR_F32; i++)
        is_finite &= (mb_get_le32(p + 4 * i) >> 23 & 0xff) != 0xff;
    for (size_t i = 0; i < W->n_cols && W->type == TENSOR_BF16; i++)
        is_finite &= (mb_get_le16(p + 2 * i) >> 7 & 0xff) != 0xff;
    for (size_t i = 0; i < W->row_bytes && W->type == TENSOR_Q8_0;
         i += Q8_0_BYTES)
        is_finite &= (mb_get_le16(p + i) >> 10 & 0x1f) != 0x1f;
    return is_finite;
}

/* All weights as one matrix. */
static struct tensor
all_rows(const struct mb_bank_block *b)
{
    return (struct tensor){b->data, BANK_N_PARTS * b->n_layers * b->rows,
        b->d_model, row_bytes(b->type, b->d_model), tensor_type_of(b->type)};
}

mb_status
mb_bank_block_verify(struct mb_slice record, struct mb_error *err)
{
    struct mb_bank_block b;
    mb_status st = mb_bank_block_open(record, &b, err);
    if (st != MB_OK)
        return st;
    if (mb_get_le64(record.data + 56) != mb_hash64(b.data, b.data_bytes, 0))
        return corrupt(err, "the weights' checksum is wrong");
    struct tensor W = all_rows(&b);
    for (size_t r = 0; r < W.n_rows; r++) {
        if (!row_is_finite(&W, r))
            return corrupt(err, "a weight is not a finite number");
    }
    return MB_OK;
}

/* ---- matrices ---- */

struct tensor
bank_matrix(const struct mb_bank_block *b, size_t layer, bank_part part)
{
    struct tensor W = all_rows(b);
    W.data += (layer * BANK_N_PARTS + part) * b->rows * W.row_bytes;
    W.n_rows = b->rows;
    return W;
}

mb_status
bank_check_fits(const struct mb_bank_block *b, size_t d_model, size_t n_layers,
    struct mb_error *err)
{
    if (b->d_model != d_model || b->first_layer >= n_layers ||
        b->n_layers > n_layers - b->first_layer)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "memory block of width %zu for layers %zu to %zu; the model has "
            "width %zu and %zu layers",
            b->d_model, b->first_layer, b->first_layer + b->n_layers, d_model,
            n_layers);
    return MB_OK;
}

struct mb_bank_norms
mb_bank_block_norms(const struct mb_bank_block *b, size_t layer)
{
    const struct compute *compute = compute_at(COMPUTE_PLAIN);
    double sum[BANK_N_PARTS] = {0};
    float row[256];
    for (int part = 0; part < BANK_N_PARTS; part++) {
        struct tensor W = bank_matrix(b, layer, (bank_part)part);
        size_t step = W.n_cols % 256 == 0 ? 256 : W.n_cols % 32 == 0 ? 32 : 1;
        /* Pieces of a row: a buffer of any width would have to be allocated. */
        size_t bytes = W.row_bytes / (W.n_cols / step);
        struct tensor piece = {
            W.data, W.n_rows * (W.n_cols / step), step, bytes, W.type};
        for (size_t r = 0; r < piece.n_rows; r++) {
            compute->row(&piece, r, row);
            for (size_t i = 0; i < step; i++)
                sum[part] += (double)row[i] * (double)row[i];
        }
    }
    return (struct mb_bank_norms){
        sqrt(sum[BANK_GATE]), sqrt(sum[BANK_UP]), sqrt(sum[BANK_DOWN])};
}

/* ---- fresh blocks ---- */

/* Widest normal that is taken, in deviations (Gururangan et al., OpenLM). */
#define CUT 3.0

static void
draw_matrix(struct mb_rng *rng, size_t n, double std, uint8_t *out)
{
    for (size_t i = 0; i < n; i++) {
        double x;
        do {
            x = mb_rng_normal(rng);
        } while (fabs(x) > CUT);
        mb_put_lef32(out + 4 * i, (float)(x * std));
    }
}

/* A stream of numbers for each matrix, far from all others. */
static uint64_t
stream_of(const struct mb_bank_draw *d, size_t layer, bank_part part)
{
    uint8_t key[32];
    mb_put_le64(key, d->seed);
    mb_put_le64(key + 8, d->node);
    mb_put_le64(key + 16, layer);
    mb_put_le64(key + 24, part);
    return mb_hash64(key, sizeof(key), 0);
}

mb_status
mb_bank_draw(const struct mb_bank_shape *shape, const struct mb_bank_draw *d,
    uint8_t *out, size_t out_bytes, struct mb_error *err)
{
    if (d->level > shape->n_levels || shape->n_levels > MB_BANK_MAX_LEVELS)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "memory block at level %zu, the bank has %zu", d->level,
            shape->n_levels);
    size_t rows =
        d->level > 0 ? shape->rows[d->level - 1] : mb_bank_path_rows(shape);
    size_t bytes = mb_bank_record_bytes(shape, rows, MB_BANK_F32);
    if (bytes == 0 || bytes != out_bytes)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "memory block of %zu rows takes %zu bytes, room is for %zu", rows,
            bytes, out_bytes);
    size_t n = rows * shape->d_model;
    double std = 1 / sqrt((double)shape->d_model);
    uint8_t *at = out + MB_BANK_HEADER;
    for (size_t l = 0; l < shape->n_layers; l++) {
        for (int part = BANK_GATE; part <= BANK_UP; part++, at += 4 * n) {
            struct mb_rng rng;
            mb_rng_init(&rng, stream_of(d, l, (bank_part)part));
            draw_matrix(&rng, n, std, at);
        }
        memset(at, 0, 4 * n);
        at += 4 * n;
    }
    struct mb_bank_block b = {
        .node = d->node,
        .level = d->level,
        .d_model = shape->d_model,
        .first_layer = shape->first_layer,
        .n_layers = shape->n_layers,
        .rows = rows,
        .type = MB_BANK_F32,
        .data_bytes = bytes - MB_BANK_HEADER,
    };
    memcpy(b.anchor, d->anchor, sizeof(b.anchor));
    bank_seal(b, out);
    return MB_OK;
}

/* ---- conversion ---- */

/* Upper half of a float, to nearest, ties to even. */
static uint16_t
bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void
bank_encode(mb_bank_type type, const float *x, size_t n, uint8_t *data)
{
    for (size_t i = 0; i < n && type == MB_BANK_F32; i++)
        mb_put_lef32(data + 4 * i, x[i]);
    for (size_t i = 0; i < n && type == MB_BANK_BF16; i++)
        mb_put_le16(data + 2 * i, bf16_of(x[i]));
    if (type == MB_BANK_Q8_0)
        gguf_quantize_q8_0(x, n, data);
}

mb_status
mb_bank_convert(const struct mb_bank_block *block, mb_bank_type type,
    uint8_t *out, size_t out_bytes, struct mb_error *err)
{
    struct mb_bank_block b = *block;
    struct tensor W = all_rows(block);
    size_t bytes = (unsigned)type <= MB_BANK_Q8_0
                       ? data_bytes(b.d_model, b.n_layers, b.rows, type)
                       : 0;
    if (bytes == 0 || out_bytes != MB_BANK_HEADER + bytes)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "memory block of width %zu as %s takes %zu bytes, room is for %zu",
            b.d_model, mb_bank_type_name(type),
            bytes ? bytes + MB_BANK_HEADER : 0, out_bytes);
    float *row = mb_alloc(b.d_model * sizeof(*row));
    if (!row)
        return mb_error_set(err, MB_ERR_NOMEM, "memory block");
    size_t step = bytes / W.n_rows;
    mb_status st = MB_OK;
    for (size_t r = 0; r < W.n_rows && st == MB_OK; r++) {
        if (!row_is_finite(&W, r))
            st = corrupt(err, "a weight is not a finite number");
        compute_at(COMPUTE_PLAIN)->row(&W, r, row);
        bank_encode(type, row, b.d_model, out + MB_BANK_HEADER + r * step);
    }
    mb_free(row);
    if (st != MB_OK)
        return st;
    b.type = type;
    b.data_bytes = bytes;
    bank_seal(b, out);
    return MB_OK;
}
