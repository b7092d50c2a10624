/* SPDX-License-Identifier: Apache-2.0
 * client/base/platform.c - the only file that may use GNU and Linux calls.
 *
 * Thread names and priorities, the processors that we may use, and the memory
 * that we hold. All of it is help, none of it is needed: where the system
 * refuses, the answer is the plain one (one processor, 0 bytes) or nothing.
 * Threads: any. */
#define _GNU_SOURCE
#include "platform.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mb_base.h"

/* linux/ioprio.h is missing from older headers. */
#define IOPRIO_OF_THREAD   1
#define IOPRIO_IDLE        3
#define IOPRIO_CLASS_SHIFT 13

void
platform_name_thread(const char *name)
{
    (void)pthread_setname_np(pthread_self(), name);
}

void
mb_thread_set_background(void)
{
    mb_thread_set_nice(19);
}

void
mb_thread_set_nice(int nice)
{
    // SCHED_IDLE would be lower still, but a thread that holds a lock might
    // then not run at all while others are busy and wait for it.
    struct sched_param none = {.sched_priority = 0};
    (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
    id_t tid = (id_t)syscall(SYS_gettid);
    if (getpriority(PRIO_PROCESS, tid) < nice)
        (void)setpriority(PRIO_PROCESS, tid, nice);
    (void)syscall(SYS_ioprio_set, IOPRIO_OF_THREAD, tid,
        IOPRIO_IDLE << IOPRIO_CLASS_SHIFT);
}

/* Processors that the control group grants (rounded up), 0 for no limit. */
static unsigned
cgroup_cpu_limit(void)
{
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!f)
        return 0;
    char line[64] = "";
    char *got = fgets(line, sizeof line, f);
    fclose(f);
    char *end = NULL;
    unsigned long long quota = got ? strtoull(line, &end, 10) : 0;
    if (quota == 0 || !end || *end != ' ')
        return 0;
    unsigned long long period = strtoull(end, NULL, 10);
    if (period == 0)
        return 0;
    unsigned long long cpus = (quota + period - 1) / period;
    return cpus > 4096 ? 4096 : (unsigned)cpus;
}

unsigned
mb_cpu_count(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    int n = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        n = CPU_COUNT(&set);
    unsigned count = n > 0 ? (unsigned)n : 1;
    unsigned limit = cgroup_cpu_limit();
    return limit > 0 && limit < count ? limit : count;
}

uint64_t
mb_process_rss_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    if (!f)
        return 0;
    static const char key[] = "RssAnon:";
    char line[256];
    uint64_t kib = 0;
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, key, sizeof key - 1) == 0) {
            kib = strtoull(line + sizeof key - 1, NULL, 10);
            break;
        }
    }
    fclose(f);
    return kib * 1024;
}
