/* SPDX-License-Identifier: Apache-2.0
 * client/wire/value.c - look-ups in a parsed message.
 *
 * An argument that is absent has its default, one of the wrong type is an
 * error: nil is not absent. Texts of errors name the argument and what it may
 * be, so that a person who reads only the reply can mend the request.
 * Threads: any; values never change. */
#include "mb_wire.h"

#include <math.h>
#include <string.h>

const struct mb_value *
mb_value_get(const struct mb_value *v, const char *key)
{
    if (!v || v->type != MB_TYPE_MAP)
        return NULL;
    struct mb_slice wanted = mb_slice_cstr(key);
    for (size_t i = 0; i < v->map.n; i++) {
        if (mb_slice_equal(v->map.pairs[i].key, wanted))
            return &v->map.pairs[i].value;
    }
    return NULL;
}
