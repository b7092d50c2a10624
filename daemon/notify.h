/* SPDX-License-Identifier: Apache-2.0
 * daemon/notify.h - tell the service manager how we are (sd_notify).
 * Threads: main. */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include "mb_base.h"

/* Send "READY=1" and the like to $NOTIFY_SOCKET; nothing if it is unset. */
void notify_send(const char *state);
/* Half of $WATCHDOG_USEC in milliseconds, 0 if there is no watchdog. */
uint64_t notify_watchdog_ms(void);

#endif
