/* The program that a server starts on its port where a template forks its Python (`preload:`).
 *
 * It passes the port and stderr to the template, which forks a child that serves them, and ends as that child ends. Its
 * only argument is the path of the template's socket; the port is on fds 7 and 8, as for a Python.
 */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define READS 7
#define WRITES 8
/* The exit status where the template has ended before the child. PyPort.Server.Shutdown has the same number. */
#define UNKNOWN 255

static int
fail(const char *what)
{
    fprintf(stderr, "port_server: %s (preload). The log of its pool says more; it is started again\n", what);
    return 1;
}

static int
pass_fds(int to)
{
    int fds[3] = {READS, WRITES, 2};
    char byte = 0;
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof fds)];
    } control;
    struct iovec data = {&byte, 1};
    struct msghdr message = {0};
    struct cmsghdr *header;
    memset(&control, 0, sizeof control);
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.room;
    message.msg_controllen = sizeof control.room;
    header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    return sendmsg(to, &message, 0) == 1;
}

int
main(int argc, char **argv)
{
    struct sockaddr_un address = {0};
    int template = socket(AF_UNIX, SOCK_STREAM, 0), forked = 0;
    address.sun_family = AF_UNIX;
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) {
        return fail("the path of the template's socket is missing or too long");
    }
    memcpy(address.sun_path, argv[1], strlen(argv[1]));
    if (template < 0 || connect(template, (struct sockaddr *)&address, sizeof address) < 0 || !pass_fds(template)) {
        return fail("the template does not answer on its socket");
    }
    for (;;) {
        /* No events are requested for the port: its hang-up is always reported. */
        struct pollfd polled[2] = {{template, POLLIN, 0}, {WRITES, 0, 0}};
        unsigned char byte;
        if (poll(polled, 2, -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return fail("poll has failed");
        }
        if (polled[0].revents) {
            /* The child has the socket, too: there is no end of input before both have ended. */
            if (read(template, &byte, 1) != 1) {
                return forked ? UNKNOWN : fail("the template has ended before it started a Python");
            }
            if (forked) {
                return byte;
            }
            forked = 1;
        }
        else if (polled[1].revents) {
            return 0; /* The server is gone, and so is the reader of the status. */
        }
    }
}
