/* What MARK(step) of plain.c is in the build of `make profile`: the step's name and the time, into a ring in the file
 * $PYPORT_TRACE, which is mapped, so that nothing has to be written down at the end. For the main thread alone.
 *
 * The file is an array of marks, as large as who made it wants it. The first COST_MARKS of them come one after another
 * while this is loaded: their distance is what a mark costs. The others are used over and over; one that was never used
 * has a time of 0.
 */

#ifndef PYPORT_TRACE_H
#define PYPORT_TRACE_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define STEP_BYTES 8
#define COST_MARKS 1000

typedef struct {
    char step[STEP_BYTES];
    int64_t ns; /* CLOCK_MONOTONIC, which the BEAM reads as well */
} Mark;

static Mark *trace_first, *trace_next, *trace_end;

static inline void
trace_mark(const char *step)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    memcpy(trace_next->step, step, STEP_BYTES);
    trace_next->ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    if (++trace_next == trace_end) {
        trace_next = trace_first;
    }
}

/* A name that is longer does not compile. */
#define MARK(name)                                                                                                     \
    do {                                                                                                               \
        static const char trace_step[STEP_BYTES + 1] = #name;                                                          \
        _Static_assert(sizeof(#name) <= sizeof(trace_step), "the name of a step is too long");                         \
        trace_mark(trace_step);                                                                                        \
    } while (0)

__attribute__((constructor)) static void
trace_open(void)
{
    const char *path = getenv("PYPORT_TRACE");
    int i, fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    struct stat file;
    if (fd < 0 || fstat(fd, &file) < 0 || file.st_size <= (off_t)(COST_MARKS * sizeof(Mark))) {
        fputs("PYPORT_TRACE must be a file with room for marks\n", stderr);
        exit(1);
    }
    /* Populated, so that no request pays for a page. */
    trace_first = mmap(NULL, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    close(fd);
    if (trace_first == MAP_FAILED) {
        perror("PYPORT_TRACE");
        exit(1);
    }
    trace_next = trace_first;
    trace_end = trace_first + (size_t)file.st_size / sizeof(Mark);
    for (i = 0; i < COST_MARKS; i++) {
        MARK(cost);
    }
    trace_first = trace_next;
}

#endif
