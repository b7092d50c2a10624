/* SPDX-License-Identifier: Apache-2.0
 * model/mb_bank.h - memory blocks: their bytes, their sizes, their use.
 *
 * "Pretraining with hierarchical memories" (Pouransari et al. 2025): a node of
 * a cluster tree owns a memory block, r more hidden units of the feed-forward
 * part in every layer that has memory. A text routes to a path of nodes, one a
 * level; with x the layer's normalised rows
 *     y += sum over the path of (silu(x G^T) * (x U^T)) D
 * where G (gate), U (up) and D (down) are (r, d_model), D stored as rows as
 * well. A fresh block has D = 0, so it changes nothing, and need not be stored
 * or attached at all.
 *
 * A record is a block's bytes: a header, then [layer][gate|up|down][r][d_model]
 * in one type. model/FORMAT.md fixes them. A record is read where it lies: a
 * struct mb_bank_block views it, a pass multiplies by it, nothing is copied or
 * unpacked. mb_bank_block_open reads the header alone, so that an attach costs
 * microseconds; mb_bank_block_verify reads all.
 *
 * Use: mb_bank_block_open for each node on the path -> struct mb_bank_path ->
 * mb_rows.bank (mb_decoder.h) or mb_engine_request.bank (mb_engine.h).
 * Training: mb_bank_train.h.
 *
 * Threads: everything here is stateless; call from any. */
#ifndef MB_BANK_H
#define MB_BANK_H

#include "mb_model.h"

#define MB_BANK_MAX_LEVELS 8u     /* of a path */
#define MB_BANK_MAX_ROWS   65536u /* r of one block */
#define MB_BANK_HEADER     80u    /* bytes in front of a record's weights */

typedef enum mb_bank_type {
    MB_BANK_F32 = 0, /* as trained */
    MB_BANK_BF16 = 1,
    MB_BANK_Q8_0 = 2 /* d_model must be a multiple of 32 */
} mb_bank_type;

/* "F32", "BF16", "Q8_0". */
const char *mb_bank_type_name(mb_bank_type type);

/* ---- shape ---- */

/* What all blocks of a bank have in common, but their rows. Memory sits in
 * layers [first_layer, first_layer + n_layers). */
struct mb_bank_shape {
    size_t d_model;
    size_t first_layer;
    size_t n_layers;
    size_t n_levels;                 /* of a path, 1 to MB_BANK_MAX_LEVELS */
    size_t rows[MB_BANK_MAX_LEVELS]; /* r of level l in [l - 1]; may be 0 */
};

/* What the defaults are made from; zero stands for the default in [ ]. */
struct mb_bank_budget {
    size_t d_model;    /* of the anchor */
    size_t n_layers;   /* of the anchor */
    uint64_t n_params; /* of the anchor */
    size_t fan_out;    /* children of a node */
    size_t n_levels;
    double fetch;       /* parameters of a path by the anchor's [0.1] */
    size_t first_layer; /* the first that has memory; all behind it have [0] */
};

/* Rows by level such that a path has about `fetch` times the anchor's
 * parameters, a level's bank is 4 times the one above (rows fall by 4 / fan_out
 * a level, at least by half), and each level has at least one row. Rows of 8
 * and more are multiples of 8. Errors: BAD_ARG. */
MB_MUST_USE mb_status mb_bank_shape_make(const struct mb_bank_budget *budget,
    struct mb_bank_shape *out, struct mb_error *err);
/* Parameters of a block with `rows` rows. */
uint64_t mb_bank_n_params(const struct mb_bank_shape *shape, size_t rows);
/* Rows of a whole path: of the generic block, which has the same size. */
size_t mb_bank_path_rows(const struct mb_bank_shape *shape);

/* ---- records ---- */

/* A view of a record; data is borrowed from it. */
struct mb_bank_block {
    uint64_t node;      /* whose block it is */
    size_t level;       /* 1 below the root; 0: the generic block */
    size_t d_model;     /* all four as in the shape */
    size_t first_layer; /* */
    size_t n_layers;    /* */
    size_t rows;        /* r */
    mb_bank_type type;
    uint8_t anchor[16];  /* mb_gguf_fingerprint of the model it belongs to */
    const uint8_t *data; /* [layer][gate|up|down][r][d_model] */
    size_t data_bytes;
};

/* Bytes of a record, 0 if a block cannot be like this (rows, width, type). */
size_t mb_bank_record_bytes(
    const struct mb_bank_shape *shape, size_t rows, mb_bank_type type);
/* View a record: header, its checksum and the exact size are checked, weights
 * are not read. Errors: CORRUPT (says what), NOT_IMPLEMENTED (a version). */
MB_MUST_USE mb_status mb_bank_block_open(
    struct mb_slice record, struct mb_bank_block *out, struct mb_error *err);
/* Also the checksum of the weights, and that all of them are finite: for verify
 * and for records from elsewhere. Errors: CORRUPT. */
MB_MUST_USE mb_status mb_bank_block_verify(
    struct mb_slice record, struct mb_error *err);

/* Which block is drawn. */
struct mb_bank_draw {
    uint64_t seed; /* the bank's */
    uint64_t node;
    size_t level;
    uint8_t anchor[16];
};

/* Write the fresh F32 record of a node into out (mb_bank_record_bytes of
 * shape->rows[level - 1], of mb_bank_path_rows for level 0): gate and up from a
 * normal of 1/sqrt(d_model) cut at 3 deviations, down zero. The same draw gives
 * the same bytes everywhere. Errors: BAD_ARG (level, size of out). */
MB_MUST_USE mb_status mb_bank_draw(const struct mb_bank_shape *shape,
    const struct mb_bank_draw *draw, uint8_t *out, size_t out_bytes,
    struct mb_error *err);
/* Write `block` as a record of another type into out (mb_bank_record_bytes).
 * From F32 to any; from others to F32. Errors: BAD_ARG, CORRUPT (a weight that
 * is not finite). */
MB_MUST_USE mb_status mb_bank_convert(const struct mb_bank_block *block,
    mb_bank_type type, uint8_t *out, size_t out_bytes, struct mb_error *err);

/* Norms (square root of the sum of squares) of one layer's matrices. */
struct mb_bank_norms {
    double gate;
    double up;
    double down; /* 0: the block says nothing in this layer */
};
/* layer counts from the block's first, below n_layers. */
struct mb_bank_norms mb_bank_block_norms(
    const struct mb_bank_block *block, size_t layer);

/* ---- attaching ---- */

/* Blocks that are attached to the rows of one request, top first. Blocks may be
 * fewer than the tree has levels: those that are fresh, disabled or stale are
 * left out. */
struct mb_bank_path {
    size_t n_blocks;
    struct mb_bank_block blocks[MB_BANK_MAX_LEVELS];
};

/* Where a request's path comes from. begin is called on the model's thread
 * before each pass that has rows of the request, end after it: records must
 * stay valid and unchanged in between, so a read transaction can be that short.
 * begin may give other bytes than the time before (a block was retrained).
 * A begin that fails ends the request with its error; end is not called then.
 * Both must be quick and not wait for other requests. */
struct mb_bank_lender {
    mb_status (*begin)(
        void *arg, struct mb_bank_path *out, struct mb_error *err);
    void (*end)(void *arg);
    void *arg; /* must outlive the request: until its on_done returns */
};

#endif
