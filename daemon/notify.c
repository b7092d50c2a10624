/* SPDX-License-Identifier: Apache-2.0
 * daemon/notify.c - tell the service manager how we are (sd_notify).
 *
 * The protocol is one datagram to the socket that NOTIFY_SOCKET names (a path,
 * or an abstract name that begins with @), so that no library is needed. A
 * manager that does not listen is none of our concern: failures are ignored.
 * Threads: main. */
#include "notify.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void
notify_send(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t size;
    int fd;

    if (path == NULL || (path[0] != '/' && path[0] != '@'))
        return;
    size = strlen(path);
    if (size >= sizeof addr.sun_path)
        return;
    memcpy(addr.sun_path, path, size);
    if (path[0] == '@')
        addr.sun_path[0] = 0;
    fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (fd < 0)
        return;
    (void)sendto(fd, state, strlen(state), 0, (const struct sockaddr *)&addr,
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size));
    (void)close(fd);
}

uint64_t
notify_watchdog_ms(void)
{
    const char *usec = getenv("WATCHDOG_USEC");
    unsigned long long v = usec != NULL ? strtoull(usec, NULL, 10) : 0;

    return v / 2000;
}
