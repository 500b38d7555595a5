/* The least that a port program can be, in C: a floor for what any other one costs.
 *
 *     echo            answers each frame with itself, one frame at a time
 *     echo tuned      the same with pipes of 1 MiB
 *
 * With $CANNED_HELLO in its environment it is a PyPort server that has no Python: the first frame, an init, is answered
 * with the contents of that file, and every eval with `{ok, Id, 2}`, whatever it says.
 *
 * Two reads and one write a frame, as in echo.py.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    HEADER = 4,
    ID_AT = 14,
    ID_BYTES = 8,
    MOST_SMALL = 1 << 16,
};

static size_t size;
static unsigned char *frame;

static void
read_all(unsigned char *into, size_t count)
{
    while (count > 0) {
        ssize_t done = read(0, into, count);
        if (done <= 0)
            exit(0);
        into += done;
        count -= (size_t)done;
    }
}

static void
write_all(const unsigned char *from, size_t count)
{
    while (count > 0) {
        ssize_t done = write(1, from, count);
        if (done <= 0)
            exit(0);
        from += done;
        count -= (size_t)done;
    }
}

/* A frame and the header before it, in the kept buffer. */
static size_t
receive(void)
{
    unsigned char header[HEADER];
    read_all(header, HEADER);
    size_t count = (size_t)header[0] << 24 | (size_t)header[1] << 16 | (size_t)header[2] << 8 | header[3];
    if (count + HEADER > size) {
        size = count + HEADER;
        frame = realloc(frame, size);
        if (frame == NULL)
            abort();
    }
    memcpy(frame, header, HEADER);
    read_all(frame + HEADER, count);
    return count + HEADER;
}

static void
answer_canned(void)
{
    if (memcmp(frame + HEADER + 5, "eval", 4) != 0)
        exit(0);
    /* header, 131, {ok, Id, 2}: what PyPort answers `1 + 1` with. */
    static unsigned char reply[] = "\0\0\0\x16\x83h\3w\2okm\0\0\0\x08________a\2";
    memcpy(reply + HEADER + 12, frame + HEADER + ID_AT, ID_BYTES);
    write_all(reply, sizeof reply - 1);
}

static void
greet(void)
{
    static unsigned char hello[HEADER + 4096];
    receive();
    int fd = open(getenv("CANNED_HELLO"), O_RDONLY);
    ssize_t count = read(fd, hello + HEADER, sizeof hello - HEADER);
    if (count <= 0)
        exit(1);
    hello[2] = (unsigned char)(count >> 8);
    hello[3] = (unsigned char)count;
    write_all(hello, HEADER + (size_t)count);
    close(fd);
}

int
main(int argc, char **argv)
{
    int canned = getenv("CANNED_HELLO") != NULL;
    size = MOST_SMALL;
    frame = malloc(size);
    if (argc > 1 && strcmp(argv[1], "tuned") == 0) {
        fcntl(0, F_SETPIPE_SZ, 1 << 20);
        fcntl(1, F_SETPIPE_SZ, 1 << 20);
    }
    if (canned)
        greet();
    for (;;) {
        size_t count = receive();
        if (canned)
            answer_canned();
        else
            write_all(frame, count);
    }
}
