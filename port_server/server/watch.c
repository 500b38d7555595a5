/* A native thread that waits for the other side of the port to hang up, and then ends the process and its group; and
 * the immediate effect of a signal that ends the server.
 *
 * The thread needs no GIL, so code that never releases it, in Python or in C, does not keep the server of a dead BEAM
 * alive. Only `start` touches Python objects. After the hang-up the thread calls async-signal-safe functions only: poll,
 * nanosleep, getpgrp, kill.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

/* Interval at which the parent is checked after user code has closed the private fds. */
#define LOOK_MS 250
/* As in fds.py. */
#define LOWEST_PRIVATE_FD 32
/* Plenty for one system call at a time; far below the 8 MiB that a thread gets by default. */
#define STACK_BYTES (64 * 1024)

struct watched {
    int fds[2];
    int grace_ms;
};

/* The parent at the first start: later the parent may be the process that adopts orphans. */
static pid_t first_parent;

/* The time that the process has beyond that grace once it is leaving by itself. */
static volatile int leaving_ms;

static void
pause_ms(int ms)
{
    struct timespec left = {ms / 1000, (ms % 1000) * 1000000L};
    while (nanosleep(&left, &left) == -1 && errno == EINTR) {
    }
}

static void
die_together(int grace_ms)
{
    pause_ms(grace_ms);
    pause_ms(leaving_ms);
    /* Only a group leader kills its group: otherwise the group belongs to a shell or a test runner. */
    if (getpgrp() == getpid()) {
        kill(0, SIGKILL);
    }
    kill(getpid(), SIGKILL);
}

static void *
watch(void *argument)
{
    struct watched watched = *(struct watched *)argument;
    struct pollfd polled[2] = {{watched.fds[0], 0, 0}, {watched.fds[1], 0, 0}};
    int hung_up = 0;
    free(argument);
    for (;;) {
        int blind = polled[0].fd < 0 && polled[1].fd < 0;
        /* No events are requested: POLLHUP, POLLERR and POLLNVAL are always reported, and data must not wake it. */
        int found = poll(polled, 2, blind ? LOOK_MS : -1);
        if (found < 0) {
            if (errno != EINTR && errno != EAGAIN && errno != ENOMEM) {
                return NULL;
            }
            continue;
        }
        if (blind && getppid() != first_parent) {
            die_together(watched.grace_ms);
        }
        for (int side = 0; side < 2 && found > 0; side++) {
            if (polled[side].revents & (POLLHUP | POLLERR)) {
                hung_up = 1;
            }
            if (polled[side].revents) { /* hung up, or closed by user code: poll ignores it from now on */
                polled[side].fd = -1;
            }
        }
        /* Both: an owner that closes its end of one pipe only still waits for the last replies on the other. */
        if (hung_up && polled[0].fd < 0 && polled[1].fd < 0) {
            die_together(watched.grace_ms);
        }
    }
}

static PyObject *
start(PyObject *Py_UNUSED(module), PyObject *args)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    struct watched given, *watched;
    int failed;
    if (!PyArg_ParseTuple(args, "iii:start", &given.fds[0], &given.fds[1], &given.grace_ms)) {
        return NULL;
    }
    watched = malloc(sizeof given);
    if (watched == NULL) {
        return PyErr_NoMemory();
    }
    *watched = given;
    if (!first_parent) {
        first_parent = getppid();
    }
#ifdef __linux__
    /* A stopped process cannot see the hang-up. SIGCONT lets it go on when its parent, the helper of the BEAM that
     * started it, dies. SIGKILL would leave its children behind. */
    (void)prctl(PR_SET_PDEATHSIG, SIGCONT);
#endif
    /* Signals are for the main thread: a system call that they interrupt there is what lets handlers run. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    /* Refused if the smallest stack is larger: then the default stays. */
    (void)pthread_attr_setstacksize(&attributes, STACK_BYTES);
    failed = pthread_create(&thread, &attributes, watch, watched);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        free(watched);
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_NewRef(Py_None);
}

/* Python notices a signal just before a read only when the read returns, which may be never. So the input ends here, in
 * the handler itself; then Python's own handler is called. */
static int input_fd, null_fd = -1;
static struct sigaction python_handler;
static volatile sig_atomic_t ended_by;

static void
on_signal(int number)
{
    int saved = errno;
    ended_by = number;
    (void)dup2(null_fd, input_fd);
    errno = saved;
    python_handler.sa_handler(number);
}

static PyObject *
end_input(PyObject *Py_UNUSED(module), PyObject *args)
{
    int number;
    struct sigaction action;
    if (!PyArg_ParseTuple(args, "ii:end_input", &number, &input_fd)) {
        return NULL;
    }
    if (null_fd < 0) {
        int low = open("/dev/null", O_RDONLY | O_CLOEXEC);
        null_fd = low < 0 ? -1 : fcntl(low, F_DUPFD_CLOEXEC, LOWEST_PRIVATE_FD);
        if (low >= 0) {
            close(low);
        }
    }
    if (null_fd < 0 || sigaction(number, NULL, &python_handler) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    action = python_handler;
    action.sa_handler = on_signal;
    if (sigaction(number, &action, NULL) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_NewRef(Py_None);
}

static PyObject *
ended(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(ended_by);
}

static PyObject *
leave(PyObject *Py_UNUSED(module), PyObject *args)
{
    int ms;
    if (!PyArg_ParseTuple(args, "i:leave", &ms)) {
        return NULL;
    }
    leaving_ms = ms;
    return Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"ended", ended, METH_NOARGS,
     "ended($module, /)\n--\n\n"
     "Give the signal that has ended the input, or 0. Python's handler may not have been called yet."},
    {"end_input", end_input, METH_VARARGS,
     "end_input($module, number, fd, /)\n--\n\n"
     "Let the signal end the input on that fd in the very moment it comes. Python must have a handler for it."},
    {"leave", leave, METH_VARARGS,
     "leave($module, ms, /)\n--\n\n"
     "Wait for so long more when both fds have hung up, because the process is leaving by itself."},
    {"start", start, METH_VARARGS,
     "start($module, reads, writes, grace_ms, /)\n--\n\n"
     "Watch the two fds from now on. When both have hung up, wait for `grace_ms` and kill the process group with\n"
     "SIGKILL, or this process alone where it does not lead one. With both -1 the parent is watched instead. On Linux\n"
     "a process that is stopped goes on when its parent dies, to the same end."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_watch",
    .m_doc = "Waits for hang-up on the port, and takes the signal that ends the server, without the GIL.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__watch(void)
{
    return PyModuleDef_Init(&definition);
}
