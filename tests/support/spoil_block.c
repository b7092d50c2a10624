/* SPDX-License-Identifier: Apache-2.0
 * tests/support/spoil_block.c - write zeros over a memory block's record, so
 * that whoever reads it is caught.
 *
 *     spoil_block STORE COLLECTION NODE */
#include "mb_banks.h"
#include "mb_store.h"

#include <stdio.h>
#include <stdlib.h>

static void
check(mb_status st, const struct mb_error *err)
{
    if (st == MB_OK)
        return;
    fprintf(stderr, "spoil_block: %s\n", err->text);
    exit(1);
}

int
main(int argc, char **argv)
{
    const struct mb_store_options opt = {0};
    struct mb_store *store = NULL;
    struct mb_snapshot *snap = NULL;
    struct mb_op *op = NULL;
    struct mb_collection coll;
    struct mb_banks bank;
    struct mb_slice record;
    struct mb_error err;
    MB_ASSERT(argc == 4);
    uint32_t node = (uint32_t)strtoul(argv[3], NULL, 10);
    check(mb_store_open(argv[1], &opt, &store, &err), &err);
    check(mb_snapshot_begin(store, &snap, &err), &err);
    check(mb_collection_get(snap, mb_slice_cstr(argv[2]), &coll, &err), &err);
    check(mb_banks_get(snap, &coll, &bank, &err), &err);
    check(mb_banks_block(snap, &coll, bank.bank, node, &record, &err), &err);
    uint8_t *zeros = mb_calloc(1, record.size);
    MB_ASSERT(zeros);
    check(mb_op_banks_edit_new(mb_slice_cstr(argv[2]), bank.bank, &op, &err),
        &err);
    check(mb_banks_edit_block(op, node, mb_slice_of(zeros, record.size)), &err);
    mb_snapshot_end(snap);
    check(mb_store_apply(store, op, &err), &err);
    mb_op_free(op);
    mb_free(zeros);
    mb_store_close(store);
    return 0;
}
