/* SPDX-License-Identifier: Apache-2.0
 * client/base/platform.h - what POSIX 2008 lacks, for base's own files.
 * Threads: any. */
#ifndef PLATFORM_H
#define PLATFORM_H

/* Show the calling thread under this name in ps and debuggers (15 bytes). */
void platform_name_thread(const char *name);

#endif
