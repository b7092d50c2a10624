/* SPDX-License-Identifier: Apache-2.0
 * store/writer.h - the one thread that writes. */
#ifndef STORE_WRITER_H
#define STORE_WRITER_H

#include "op.h"

struct writer;

struct writer_stats {
    uint64_t n_commits;
    uint64_t n_ops;
    uint64_t last_commit_us;
    uint64_t queued_ops;
    bool scrub_pending;
};

/* Starts the thread. Errors: NOMEM, INTERNAL, those of reading the store. */
MB_MUST_USE mb_status writer_start(struct mb_store *store,
    size_t max_queued_ops, struct writer **out, struct mb_error *err);
/* Applies what is queued, then ends the thread; takes NULL. Erasing that is
 * not finished goes on when the store is opened again. */
void writer_stop(struct writer *writer);
MB_MUST_USE mb_status writer_submit(struct writer *writer, struct mb_op *op,
    mb_op_done_fn done, void *arg, struct mb_error *err);
void writer_stats(struct writer *writer, struct writer_stats *out);

#endif
