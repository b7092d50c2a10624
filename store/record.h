/* SPDX-License-Identifier: Apache-2.0
 * store/record.h - the frame of stored records.
 *
 * Every record ends with u32 = low 32 bits of mb_hash64(all bytes before, 0).
 * It finds damage below LMDB (a flipped bit, a page of another file); verify
 * checks all records, reading paths check what they cannot bound otherwise. */
#ifndef STORE_RECORD_H
#define STORE_RECORD_H

#include "mb_base.h"

#define RECORD_CHECKSUM 4 /* bytes at the end */

/* Fill in the checksum of a record of size bytes, checksum included. */
static inline void
record_seal(uint8_t *record, size_t size)
{
    size_t body = size - RECORD_CHECKSUM;
    mb_put_le32(record + body, (uint32_t)mb_hash64(record, body, 0));
}

static inline bool
record_is_sound(struct mb_slice record)
{
    if (record.size < RECORD_CHECKSUM)
        return false;
    size_t body = record.size - RECORD_CHECKSUM;
    return mb_get_le32(record.data + body) ==
           (uint32_t)mb_hash64(record.data, body, 0);
}

#endif
