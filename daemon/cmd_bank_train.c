/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_bank_train.c - bank.train, .pause, .purge.
 *
 * Each writes what is wanted into the store, where mb-train finds it
 * (jobs_train.c): acknowledged is on disk, and survives a restart.
 * Threads: a worker. */
#include <string.h>

#include "banks.h"
#include "cmd_read.h"

/* The collection's bank, which must be for the model that reads. */
static mb_status
find_bank(struct call *c, struct mb_collection *coll, struct mb_banks *bank)
{
    struct mb_snapshot *snap = NULL;
    mb_status st = call_snapshot(c, &snap, coll);

    if (st == MB_OK)
        st = mb_banks_get(snap, coll, bank, &c->err);
    mb_snapshot_end(snap);
    if (st == MB_OK && !banks_is_live(c->d, bank))
        st = mb_error_set(&c->err, MB_ERR_MISMATCH,
            "the memory bank of collection %s belongs to another model: %s",
            coll->name, bank->model);
    return st;
}

static mb_status
change_run(struct call *c, const struct mb_collection *coll, uint32_t bank,
    mb_banks_run_change change, const struct mb_banks_run *run)
{
    struct mb_op *op = NULL;
    mb_status st =
        mb_op_banks_edit_new(mb_slice_cstr(coll->name), bank, &op, &c->err);

    if (st == MB_OK)
        st = mb_banks_edit_run(op, change, run);
    if (st == MB_OK)
        st = mb_store_apply(c->d->store, op, &c->err);
    mb_op_free(op);
    return st;
}

/* Queue the job; with `wait` the call is handed over. */
static mb_status
submit(struct call *c, job_kind kind, const struct mb_collection *coll,
    bool wait, bool *later)
{
    struct mb_error err = {0};
    uint64_t id;
    mb_status st;

    *later = wait;
    // With wait the call may be gone as soon as it is queued.
    st = jobs_train(c->d->jobs, kind, coll, wait ? c : NULL, &id, &err);
    if (st != MB_OK) {
        *later = false;
        c->err = err;
        return st;
    }
    if (wait)
        return MB_OK;
    mb_write_map(&c->w, 1);
    mb_write_kv_uint(&c->w, "job", id);
    return MB_OK;
}

COMMAND_HANDLER(cmd_bank_train)
{
    struct mb_banks_run run = {.ms = UINT64_MAX, .tokens = UINT64_MAX};
    struct mb_error *err = &c->err;
    struct mb_collection coll;
    struct mb_banks bank;
    double seconds = 0;
    uint64_t tokens = 0;
    bool wait = false;
    mb_status st = reader_check(c->d->reader, "bank.train", err);

    (void)w;
    if (st == MB_OK)
        st = mb_arg_double(c->args, "seconds", 0, 0, 1e9, &seconds, err);
    if (st == MB_OK)
        st = mb_arg_u64(c->args, "tokens", 0, 0, INT64_MAX, &tokens, err);
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "generic", false, &run.is_generic, err);
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "wait", false, &wait, err);
    if (st == MB_OK)
        st = find_bank(c, &coll, &bank);
    if (st != MB_OK)
        return st;
    if (seconds > 0)
        run.ms = (uint64_t)(seconds * 1e3) + 1;
    if (tokens > 0)
        run.tokens = tokens;
    st = change_run(c, &coll, bank.bank, MB_BANKS_RUN_TRAIN, &run);
    return st == MB_OK ? submit(c, JOB_TRAIN, &coll, wait, later) : st;
}

COMMAND_HANDLER(cmd_bank_purge)
{
    struct mb_collection coll;
    struct mb_banks bank;
    bool wait = false;
    mb_status st = reader_check(c->d->reader, "bank.purge", &c->err);

    (void)w;
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "wait", false, &wait, &c->err);
    if (st == MB_OK)
        st = find_bank(c, &coll, &bank);
    if (st == MB_OK)
        st = change_run(c, &coll, bank.bank, MB_BANKS_RUN_PURGE, NULL);
    return st == MB_OK ? submit(c, JOB_BANK_PURGE, &coll, wait, later) : st;
}

COMMAND_HANDLER(cmd_bank_pause)
{
    struct mb_collection coll;
    struct mb_banks bank;
    bool pause;
    mb_status st = mb_arg_bool(c->args, "pause", true, &pause, &c->err);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = find_bank(c, &coll, &bank);
    if (st == MB_OK)
        st = change_run(c, &coll, bank.bank,
            pause ? MB_BANKS_RUN_PAUSE : MB_BANKS_RUN_RESUME, NULL);
    if (st != MB_OK)
        return st;
    jobs_train_again(c->d->jobs, &coll);
    mb_write_map(&c->w, 1);
    mb_write_kv_bool(&c->w, "paused", pause);
    return MB_OK;
}
