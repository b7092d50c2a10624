/* SPDX-License-Identifier: Apache-2.0
 * client/base/hash.c - XXH3 from the header of libxxhash.
 *
 * XXH3's results are fixed since version 0.8.0, so the store may keep them.
 * The header is used inline: no library to link, and short keys hash without
 * a call. The 128-bit form is kept in xxhash's canonical byte order.
 * Not for secrets: whoever chooses the bytes can make collisions.
 * Threads: any. */
#include "mb_base.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t
mb_hash64(const void *data, size_t size, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, size, seed);
}

void
mb_hash128(const void *data, size_t size, uint8_t out[16])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, size));
    memcpy(out, canonical.digest, 16);
}
