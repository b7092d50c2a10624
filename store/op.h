/* SPDX-License-Identifier: Apache-2.0
 * store/op.h - operations as the writer sees them.
 *
 * An operation is a struct that begins with struct mb_op and has a class: its
 * name, the body that runs inside the write transaction, and how to free it.
 * A body may run more than once (its transaction may be undone by the failure
 * of another operation in the same commit), so it sets its results anew each
 * time. It checks first and writes afterwards: until it sets w->changed a
 * failure is its own affair, after that the whole transaction is undone.
 * Owner: the caller until submitted, the writer until `done` is called. */
#ifndef STORE_OP_H
#define STORE_OP_H

#include "internal.h"

struct op_class {
    const char *name; /* for errors and logs */
    mb_status (*body)(struct mb_op *op, struct wtxn *w, struct mb_error *err);
    void (*free)(struct mb_op *op); /* the whole object */
};

struct mb_op {
    const struct op_class *cls;
    size_t bytes; /* about what it adds to a transaction */
    mb_op_done_fn done;
    void *arg;
    /* Writer's own. */
    struct mb_op *next;
    mb_status status;
    struct mb_error error;
};

/* Cleared object of `size` bytes that begins with struct mb_op; NULL without
 * memory. */
void *op_new(const struct op_class *cls, size_t size);

/* A copied name of a collection. */
struct op_name {
    uint16_t size;
    uint8_t bytes[MB_MAX_COLLECTION_NAME];
};

/* Errors: BAD_ARG (empty or too long). */
MB_MUST_USE mb_status op_name_set(
    struct op_name *out, struct mb_slice name, struct mb_error *err);
struct mb_slice op_name_get(const struct op_name *name);

#endif
