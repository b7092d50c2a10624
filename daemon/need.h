/* SPDX-License-Identifier: Apache-2.0
 * daemon/need.h - what the dense index of a collection needs.
 * Threads: any; it only looks at what it is given. */
#ifndef DAEMON_NEED_H
#define DAEMON_NEED_H

#include "config.h"
#include "mb_store.h"

enum need {
    NEED_NOTHING,
    NEED_WHEN_QUIET, /* has doubled since its last fit */
    NEED_NOW         /* has none, or has grown four times */
};

enum need need_of(const struct config *cfg, const struct mb_collection *coll);

#endif
