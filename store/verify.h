/* SPDX-License-Identifier: Apache-2.0
 * store/verify.h - helpers for those who check tables (struct verify itself
 * is in internal.h). */
#ifndef STORE_VERIFY_H
#define STORE_VERIFY_H

#include "internal.h"

/* Report progress: `part` in [0, 1] of the step at hand. CANCELLED if told to
 * stop. */
MB_MUST_USE mb_status verify_step(
    struct verify *v, double part, struct mb_error *err);

typedef mb_status (*verify_row_fn)(
    void *arg, struct mb_slice key, struct mb_slice val);

/* fn for each row whose key starts with prefix; each counts as a record. */
MB_MUST_USE mb_status verify_walk(struct verify *v, enum kv_table table,
    struct mb_slice prefix, verify_row_fn fn, void *arg, struct mb_error *err);

#endif
