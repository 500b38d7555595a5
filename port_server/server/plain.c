/* The plain request, from the read that brings it to the write of its reply: an eval with the options that are usual, alone
 * or with others of its kind. What is not plain is handed to Python untouched.
 *
 * What happens here, and in which order, is what MainLane.run and Evaluator.evaluate do, and Dispatcher._run where
 * several come together: read them first. It is written out in C because in Python its 150 bytecodes are most of what
 * such a request costs. Whatever is seldom
 * needed (compiling, a failure, a value to be awaited, a write that takes a part) is a call of the methods that the
 * general path has for it.
 *
 * A call into the BEAM from main is here as well: from the write that brings it there to the read that brings its answer.
 *
 * Signal handlers run between bytecodes, so in here only in those of user code and of the methods that are called.
 * What they raise may end the request while `evaluating` says so, and nothing else; see window.py.
 *
 * Without the GIL are only the reads, and a write that has to wait. A call from user code has a buffer of its own, because the
 * one of the request may yet be needed; neither is used across user code, in which both `run` and `ask` may be called
 * again: a frame that is needed for longer is copied.
 */

#define _GNU_SOURCE /* pwritev2 */
#include "../etf/native.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Where a step of a request ends, for `make profile`, which has a build of its own (benchmarks/trace); nothing in any
 * other. */
#ifdef PLAIN_TRACE
#include "trace.h"
#else
#define MARK(step)
#endif

/* A request: the header, {eval, Id, Options, Code, Globals} with an Id of 8 bytes. */
#define HEADER_BYTES 4
static const unsigned char request_head[] = {131, 'h', 5, 'w', 4, 'e', 'v', 'a', 'l', 'm', 0, 0, 0, 8};
#define ID_TERM_AT (HEADER_BYTES + 9)
#define ID_TERM_BYTES 13
#define OPTIONS_AT (ID_TERM_AT + ID_TERM_BYTES)
static const unsigned char no_globals[] = {'t', 0, 0, 0, 0};
/* {ok, Id, Value}, up to the id. */
static const char reply_head[] = {(char)131, 'h', 3, 'w', 2, 'o', 'k'};
/* {invoke, Id, CallId, Function, Args}, up to the id; and {answer, CallId, {ok, Value}}, up to the id, and behind it. */
static const char invoke_head[] = {(char)131, 'h', 5, 'w', 6, 'i', 'n', 'v', 'o', 'k', 'e'};
static const char answer_head[] = {(char)131, 'h', 3, 'w', 6, 'a', 'n', 's', 'w', 'e', 'r', 'm', 0, 0, 0, 8};
static const char answer_ok[] = {'h', 2, 'w', 2, 'o', 'k'};
#define CALL_ID_BYTES 8
/* A reply this large is written from here, and a larger one in parts: channel.py's bound, and the header. */
#define ROOM_BYTES (16384 + HEADER_BYTES)
/* Of the status page, see page.py. */
#define PAGE_BYTES 64
#define PAGE_ID_AT 11
#define PAGE_LENGTH_AT 15

/* What `turn` and `run` work with; given by name to the constructor, and the same for as long as the server lives. */
#define PARTS(X)                                                                                                       \
    X(stdio) X(channel) X(lane) X(output) X(baton) X(evaluator) X(streams) X(window) X(dispatcher) X(exports)          \
    X(held) X(queue) X(ready) X(dropped) X(requests) X(snippets) X(base) X(names) X(namespaces) X(sys_dict)            \
    X(take_baton) X(leave_baton) X(take_writing) X(leave_writing) X(compile) X(check_yield) X(not_an_eval)             \
    X(export_value) X(collect) X(with_objects) X(plain_kind) X(native) X(page) X(monotonic) X(enqueue) X(dequeue)      \
    X(unshift) X(hold_back) X(take_held) X(put_back) X(calls) X(pending) X(numbers) X(new_call) X(reader) X(below)      \
    X(cancelled) X(turns_held) X(turns_jobs) X(tasks) X(get_frame) X(recursion_limit) X(new_context)

/* The attributes and methods of those that are used. */
#define WORDS(X)                                                                                                       \
    X(reads) X(writes) X(forked) X(running) X(usual_options) X(sequence) X(parked) X(wake) X(wait) X(ids) X(alert)     \
    X(gone) X(ran) X(source) X(kind) X(suspect) X(expression) X(run) X(stdout) X(stderr) X(stdin) X(__loader__)        \
    X(fresh) X(write_out) X(failed) X(interrupted) X(answer_unusual) X(leave) X(settle) X(send)        \
    X(finish) X(receive) X(answered) X(eval) X(mixed) X(usual_deadline_ms) X(time) X(held_bytes) X(hold) X(look_again) \
    X(work) X(resumed) X(between) X(flush_of) X(pop) X(go_on) X(not_written) X(result) X(check) X(id)

enum {
#define X(name) P_##name,
    PARTS(X)
#undef X
        P_COUNT
};

enum {
#define X(name) W_##name,
    WORDS(X)
#undef X
        W_COUNT
};

/* The arguments of `evaluate`, on their way through a context. */
typedef struct {
    const unsigned char *body;
    const unsigned char *end;
    PyObject *frame;
    Py_ssize_t at;
    PyObject *id_term;
    struct Reply *reply;
    int result;
} Evaluation;

typedef struct {
    PyObject_HEAD
    PyObject *parts[P_COUNT];
    PyObject *words[W_COUNT];
    const NativeApi *codec;
    PyObject *evaluate_now; /* `evaluate`, for `evaluation`, as something that can be called */
    Evaluation *evaluation;
    Py_buffer page;
    char *buffer; /* what was read */
    char *answer; /* the same, where code waits for the answer to a call */
    Py_ssize_t read_bytes;
    Py_ssize_t max_frame_bytes;
    long held_replies;
    long reply_hold_us;
    long look_again_us;
    long max_nested_calls;
    long headroom;
    int max_depth;
    int evaluating;
    int must_let_go;
} Plain;

/* A frame to be written, most often a reply: `size` bytes behind the header's place in `room`; or parts; or neither, if it
 * comes later. */
typedef struct Reply {
    PyObject *parts;
    Py_ssize_t size;
    char room[ROOM_BYTES];
} Reply;

#define PART(name) (self->parts[P_##name])
#define WORD(name) (self->words[W_##name])
#define GET(of, name) PyObject_GetAttr(PART(of), WORD(name))
#define SET(of, name, value) PyObject_SetAttr(PART(of), WORD(name), value)
#define CALL(of, name, ...) PyObject_CallMethodObjArgs(PART(of), WORD(name), __VA_ARGS__, NULL)
#define CALL0(of, name) PyObject_CallMethodObjArgs(PART(of), WORD(name), NULL)

/* ---- small things ------------------------------------------------------------------------------------------------ */

/* Tells whether an attribute is true; -1 with an exception. */
static inline int
flag(Plain *self, int part, int word)
{
    int result;
    PyObject *value = PyObject_GetAttr(self->parts[part], self->words[word]);
    if (value == NULL) {
        return -1;
    }
    result = value == Py_False ? 0 : value == Py_True ? 1 : PyObject_IsTrue(value);
    Py_DECREF(value);
    return result;
}

#define FLAG(of, name) flag(self, P_##of, W_##name)

/* An attribute that is an fd. */
static int
fd_of(Plain *self, int word)
{
    long fd;
    PyObject *value = PyObject_GetAttr(PART(stdio), self->words[word]);
    if (value == NULL) {
        return -1;
    }
    fd = PyLong_AsLong(value);
    Py_DECREF(value);
    return (int)fd;
}

/* 1 if a lock was taken, 0 if it was not, -1 with an exception. */
static int
try_lock(PyObject *acquire)
{
    PyObject *taken = PyObject_CallFunctionObjArgs(acquire, Py_False, NULL);
    int result = taken == NULL ? -1 : taken == Py_True;
    Py_XDECREF(taken);
    return result;
}

/* Drops the result of a call; -1 if there is none. */
static int
done(PyObject *result)
{
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* What a header says, or the length of a binary. */
static inline Py_ssize_t
length_at(const unsigned char *data)
{
    return (Py_ssize_t)data[0] << 24 | (Py_ssize_t)data[1] << 16 | (Py_ssize_t)data[2] << 8 | data[3];
}

/* How long the plain request is that `data` begins with, its header included; 0 if there is none, or not all of it. */
static inline Py_ssize_t
plain_request(Plain *self, const unsigned char *data, Py_ssize_t size, PyObject *options, Py_ssize_t options_bytes)
{
    Py_ssize_t bytes;
    if (size < OPTIONS_AT + options_bytes || memcmp(data + HEADER_BYTES, request_head, sizeof(request_head)) != 0 ||
        memcmp(data + OPTIONS_AT, PyBytes_AsString(options), (size_t)options_bytes) != 0) {
        return 0;
    }
    bytes = length_at(data);
    return bytes > size - HEADER_BYTES || bytes > self->max_frame_bytes ||
                   bytes < OPTIONS_AT - HEADER_BYTES + options_bytes
               ? 0
               : HEADER_BYTES + bytes;
}

static void
show_running(Plain *self, const char *id_term)
{
    if (self->page.buf != NULL) {
        memcpy((char *)self->page.buf + PAGE_ID_AT, id_term, ID_TERM_BYTES);
    }
}

static void
show_none(Plain *self)
{
    if (self->page.buf != NULL) {
        ((volatile char *)self->page.buf)[PAGE_LENGTH_AT] = 0;
    }
}

static int
is_plain_value(PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    return type == &PyLong_Type || type == &PyUnicode_Type || type == Py_TYPE(Py_None) || type == &PyFloat_Type ||
           type == &PyBool_Type || type == &PyList_Type || type == &PyDict_Type || type == &PyTuple_Type ||
           type == &PyBytes_Type || type == &PySet_Type || type == &PyFrozenSet_Type;
}

/* A list with what is in the room of a reply. */
static PyObject *
room_as_parts(const Reply *reply)
{
    PyObject *part = PyBytes_FromStringAndSize(reply->room + HEADER_BYTES, reply->size);
    PyObject *parts = part == NULL ? NULL : PyList_New(1);
    if (parts == NULL) {
        Py_XDECREF(part);
        return NULL;
    }
    PyList_SetItem(parts, 0, part);
    return parts;
}

/* ---- the evaluation ---------------------------------------------------------------------------------------------- */

/* The text of a binary at `p`, and how long its term is; NULL without an exception if it is anything else. */
static PyObject *
text_at(const unsigned char *p, const unsigned char *end, Py_ssize_t *size)
{
    PyObject *text;
    Py_ssize_t length;
    if (end - p < 5 || p[0] != 'm') {
        return NULL;
    }
    length = length_at(p + 1);
    if (length > end - p - 5) {
        return NULL;
    }
    text = PyUnicode_DecodeUTF8((const char *)p + 5, length, NULL);
    if (text == NULL) {
        PyErr_Clear(); /* the codec says it better */
    }
    *size = 5 + length;
    return text;
}

/* A new namespace for `snippet` that holds `values`, which may be NULL for none. */
static PyObject *
namespace_of(Plain *self, PyObject *snippet, PyObject *values)
{
    PyObject *namespace, *source, *key, *value;
    Py_ssize_t at = 0;
    int result;
    if (values != NULL) {
        while (PyDict_Next(values, &at, &key, &value)) {
            /* One that was never seen is looked at, and perhaps refused, there. */
            if (PyDict_GetItemWithError(PART(names), key) == NULL) {
                return PyErr_Occurred() ? NULL : CALL(namespaces, fresh, snippet, values);
            }
        }
    }
    namespace = PyDict_Copy(PART(base));
    source = namespace == NULL ? NULL : PyObject_GetAttr(snippet, WORD(source));
    result = source == NULL ? -1 : PyDict_SetItem(namespace, WORD(__loader__), source);
    Py_XDECREF(source);
    at = 0;
    while (values != NULL && result == 0 && PyDict_Next(values, &at, &key, &value)) {
        PyObject *name = PyDict_GetItemWithError(PART(names), key);
        result = name == NULL ? -1 : PyDict_SetItem(namespace, name, value);
    }
    if (result < 0) {
        Py_CLEAR(namespace);
    }
    return namespace;
}

/* Runs a snippet. */
static PyObject *
run_snippet(Plain *self, PyObject *snippet, PyObject *namespace)
{
    PyObject *value, *expression = PyObject_GetAttr(snippet, WORD(expression));
    if (expression == NULL) {
        return NULL;
    }
    if (expression == Py_None) {
        value = PyObject_CallMethodObjArgs(snippet, WORD(run), namespace, NULL);
    }
    else {
        value = PyEval_EvalCode(expression, namespace, namespace);
    }
    Py_DECREF(expression);
    return value;
}

/* What is to be done before a snippet runs. */
static int
prepare(Plain *self, PyObject *snippet)
{
    PyObject *kind = PyObject_GetAttr(snippet, WORD(kind));
    Py_ssize_t held;
    if (kind == NULL) {
        return -1;
    }
    Py_DECREF(kind);
    if (UNLIKELY(kind != PART(plain_kind)) &&
        done(PyObject_CallFunctionObjArgs(PART(check_yield), snippet, Py_None, NULL)) < 0) {
        return -1;
    }
    held = PyObject_Size(PART(held));
    if (UNLIKELY(held != 0)) { /* replies that must not wait for code that is not known to be quick */
        PyObject *suspect = held < 0 ? NULL : PyObject_GetAttr(snippet, WORD(suspect));
        int slow = suspect == NULL ? -1 : PyObject_IsTrue(suspect);
        Py_XDECREF(suspect);
        if (slow < 0 || (slow && done(CALL0(channel, write_out)) < 0)) {
            return -1;
        }
    }
    return SET(evaluator, ran, snippet);
}

/* Makes the frame of a message that ends with `value`, and with the objects in it, if there are any. */
static int
write_message(Plain *self, const char *head, Py_ssize_t head_bytes, PyObject *value, Reply *reply)
{
    NativeWriting how = {head,           head_bytes,      PART(export_value), self->max_frame_bytes,
                         self->max_depth, ROOM_BYTES - HEADER_BYTES};
    PyObject *ids, *parts;
    Py_ssize_t count;
    parts = self->codec->write(PART(native), value, &how, reply->room + HEADER_BYTES, &reply->size);
    if (parts == NULL) {
        return -1;
    }
    if (LIKELY(parts == Py_None)) {
        Py_CLEAR(parts);
    }
    ids = GET(exports, ids);
    count = ids == NULL ? -1 : PyObject_Size(ids);
    if (UNLIKELY(count > 0)) { /* objects are in it */
        PyObject *empty = NULL, *with = NULL;
        if (parts == NULL) {
            parts = room_as_parts(reply);
        }
        if (parts != NULL) {
            with = PyObject_CallFunctionObjArgs(PART(with_objects), parts, ids, NULL);
        }
        if (with != NULL) {
            empty = PyList_New(0);
        }
        if (empty == NULL || SET(exports, ids, empty) < 0) {
            Py_CLEAR(with);
            count = -1;
        }
        Py_XDECREF(empty);
        Py_XDECREF(parts);
        parts = with;
    }
    Py_XDECREF(ids);
    if (count < 0) {
        Py_XDECREF(parts);
        return -1;
    }
    reply->parts = parts;
    return 0;
}

/* Makes the reply that carries a value of a usual type. */
static int
write_reply(Plain *self, PyObject *value, PyObject *id_term, Reply *reply)
{
    char head[sizeof(reply_head) + ID_TERM_BYTES];
    memcpy(head, reply_head, sizeof(reply_head));
    memcpy(head + sizeof(reply_head), PyBytes_AsString(id_term), ID_TERM_BYTES);
    return write_message(self, head, sizeof(head), value, reply);
}

/* Reads the body of an eval, runs it, and makes its reply; as Evaluator.evaluate, but what goes wrong is an exception,
 * with the step at which it did. `values` gets what is to be dropped then. */
static int
attempt(Plain *self, const unsigned char *body, const unsigned char *end, PyObject *frame, Py_ssize_t at,
        PyObject *id_term, Reply *reply, PyObject **values, const char **step)
{
    PyObject *value, *snippet = NULL, *copy = NULL, *given = NULL;
    Py_ssize_t size = 0, whole = at + (end - body);
    PyObject *code = text_at(body, end, &size);
    int result = -1;

    *step = "code";
    if (code != NULL) {
        body += size;
        at += size;
    }
    if (code == NULL || end - body != sizeof(no_globals) || memcmp(body, no_globals, sizeof(no_globals)) != 0) {
        /* The codec reads out of an object. */
        if (frame == NULL) {
            frame = copy = PyBytes_FromStringAndSize(self->buffer + HEADER_BYTES, whole);
            if (copy == NULL) {
                goto leave;
            }
        }
        if (code == NULL) {
            code = self->codec->read(PART(native), frame, at, self->max_depth, &at);
            if (code == NULL) {
                goto leave;
            }
        }
        *step = "globals";
        given = self->codec->read(PART(native), frame, at, self->max_depth, &at);
        if (given == NULL) {
            goto leave;
        }
        *values = given;
        if (at != whole || Py_TYPE(given) != &PyDict_Type) {
            PyObject *place = PyLong_FromSsize_t(at);
            PyObject *error = place == NULL ? NULL
                                            : PyObject_CallFunctionObjArgs(PART(not_an_eval), frame, place, given, NULL);
            Py_XDECREF(place);
            if (error != NULL) {
                PyErr_SetObject((PyObject *)Py_TYPE(error), error);
                Py_DECREF(error);
            }
            goto leave;
        }
    }
    MARK(decoded);
    *step = "run";
    if (Py_TYPE(code) == &PyUnicode_Type) {
        snippet = Py_XNewRef(PyDict_GetItemWithError(PART(snippets), code));
        if (snippet == NULL && PyErr_Occurred()) {
            goto leave;
        }
    }
    if (snippet == NULL) {
        snippet = PyObject_CallFunctionObjArgs(PART(compile), code, NULL);
        if (snippet == NULL) {
            goto leave;
        }
    }
    {
        PyObject *namespace = namespace_of(self, snippet, given);
        if (namespace == NULL) {
            goto leave;
        }
        Py_XDECREF(given);
        *values = namespace;
    }
    if (prepare(self, snippet) < 0) {
        goto leave;
    }
    MARK(found);
    value = run_snippet(self, snippet, *values);
    if (value == NULL) {
        goto leave;
    }
    MARK(ran);
    *step = "result";
    if (LIKELY(is_plain_value(value))) {
        result = write_reply(self, value, id_term, reply);
    }
    else {
        if (frame == NULL) {
            frame = copy = PyBytes_FromStringAndSize(self->buffer + HEADER_BYTES, whole);
        }
        reply->parts = frame == NULL ? NULL : CALL(evaluator, answer_unusual, frame, id_term, code, value);
        if (reply->parts == Py_None) { /* it goes on elsewhere */
            Py_CLEAR(reply->parts);
            result = 1;
        }
        else if (reply->parts != NULL) {
            result = 0;
        }
    }
    MARK(encoded);
    Py_DECREF(value);
leave:
    Py_XDECREF(copy);
    Py_XDECREF(snippet);
    Py_XDECREF(code);
    return result;
}

/* As Evaluator.evaluate: whatever goes wrong has a reply, too. 0 if there is one, 1 if it comes later; -1 with what was
 * raised while a failure was described a second time. */
static int
evaluate(Plain *self, const unsigned char *body, const unsigned char *end, PyObject *frame, Py_ssize_t at,
         PyObject *id_term, Reply *reply)
{
    PyObject *values = NULL, *type, *error, *traceback;
    const char *step = NULL;
    int cyclic, result, before = self->evaluating;
    self->evaluating = 1;
    result = attempt(self, body, end, frame, at, id_term, reply, &values, &step);
    if (UNLIKELY(result < 0)) {
        PyObject *where = NULL;
        error = take_exception();
        where = PyUnicode_InternFromString(step);
        Py_CLEAR(reply->parts);
        if (where != NULL) {
            reply->parts = CALL(evaluator, failed, error, where, id_term, PART(exports));
            Py_DECREF(where);
        }
        Py_DECREF(error);
        if (reply->parts == NULL) { /* a signal */
            error = take_exception();
            reply->parts = CALL(evaluator, interrupted, error, id_term, PART(exports));
            Py_DECREF(error);
        }
        result = reply->parts == NULL ? -1 : 0;
    }
    if (values != NULL) {
        PyErr_Fetch(&type, &error, &traceback);
        cyclic = Py_REFCNT(values) > 1 && Py_TYPE(values) == &PyDict_Type;
        Py_DECREF(values); /* a __del__ may run, whose prints are the request's as well */
        if (UNLIKELY(cyclic) && result == 0 && PyGC_IsEnabled()) {
            /* Functions of the namespace refer to it; without this its data would stay until the collector comes. */
            if (done(PyObject_CallFunctionObjArgs(PART(collect), NULL)) < 0) {
                PyErr_Clear(); /* a signal; the reply is there already */
            }
        }
        PyErr_Restore(type, error, traceback);
    }
    self->evaluating = before;
    return result;
}

/* Evaluates a request in a context of its own. The stable ABI has no other way into one than its method `run`. */
static int
evaluate_in_context(Plain *self, const unsigned char *body, const unsigned char *end, PyObject *frame, Py_ssize_t at,
                    PyObject *id_term, Reply *reply)
{
    Evaluation evaluation = {body, end, frame, at, id_term, reply, -1};
    PyObject *context = PyObject_CallFunctionObjArgs(PART(new_context), NULL);
    if (context != NULL) {
        self->evaluation = &evaluation;
        Py_XDECREF(PyObject_CallMethodObjArgs(context, WORD(run), self->evaluate_now, NULL));
        Py_DECREF(context);
    }
    return evaluation.result;
}

static PyObject *
evaluate_now(PyObject *object, PyObject *Py_UNUSED(none))
{
    Plain *self = (Plain *)object;
    Evaluation *it = self->evaluation;
    it->result = evaluate(self, it->body, it->end, it->frame, it->at, it->id_term, it->reply);
    return it->result < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef evaluate_now_method = {"evaluate_now", evaluate_now, METH_NOARGS, NULL};

/* ---- the lane ---------------------------------------------------------------------------------------------------- */

/* Tells whether user code has left anything behind that MainLane.leave has to put in order. */
static int
is_untidy(Plain *self)
{
    static const int words[] = {W_stdout, W_stderr, W_stdin};
    int i, forked = FLAG(stdio, forked);
    if (forked != 0 || PyObject_Size(PART(requests)) != 0 || PyObject_Size(PART(dropped)) != 0) {
        return forked < 0 ? -1 : 1;
    }
    for (i = 0; i < 3; i++) {
        PyObject *ours = PyObject_GetAttr(PART(streams), self->words[words[i]]);
        if (ours == NULL) {
            return -1;
        }
        Py_DECREF(ours);
        if (PyDict_GetItemWithError(PART(sys_dict), self->words[words[i]]) != ours) {
            return 1;
        }
    }
    return 0;
}

static int
count_up(Plain *self, int word)
{
    int result;
    long long count;
    PyObject *number = PyObject_GetAttr(PART(baton), self->words[word]);
    if (number == NULL) {
        return -1;
    }
    count = PyLong_AsLongLong(number);
    Py_DECREF(number);
    number = PyLong_FromLongLong(count + 1);
    result = number == NULL ? -1 : PyObject_SetAttr(PART(baton), self->words[word], number);
    Py_XDECREF(number);
    return result;
}

/* User code begins or goes on: others may have the baton. */
static int
let_baton_go(Plain *self)
{
    int parked;
    if (count_up(self, W_sequence) < 0 || done(PyObject_CallFunctionObjArgs(PART(leave_baton), NULL)) < 0) {
        return -1;
    }
    parked = FLAG(baton, parked);
    return parked > 0 ? done(CALL0(baton, wake)) : parked;
}

static int
enter(Plain *self, PyObject *id_term)
{
    if (SET(lane, running, id_term) < 0 || SET(output, running, id_term) < 0) {
        return -1;
    }
    show_running(self, PyBytes_AsString(id_term));
    return let_baton_go(self);
}

static int
take_baton_back(Plain *self)
{
    int taken = try_lock(PART(take_baton));
    return taken == 0 ? done(CALL0(baton, wait)) : taken < 0 ? -1 : 0;
}

/* As MainLane.run; gives what `evaluate` gives. */
static int
run_request(Plain *self, const unsigned char *body, const unsigned char *end, PyObject *frame, Py_ssize_t at,
            PyObject *id_term, Reply *reply)
{
    int alert, untidy, result;
    if (enter(self, id_term) < 0) {
        return -1;
    }
    MARK(entered);
    result = evaluate_in_context(self, body, end, frame, at, id_term, reply);
    MARK(dropped);
    if (LIKELY(result >= 0)) {
        untidy = is_untidy(self);
        if (untidy > 0) {
            untidy = done(CALL(lane, leave, result == 0 ? Py_True : Py_False));
        }
        else if (untidy == 0) {
            untidy = SET(output, running, Py_None);
        }
        if (untidy < 0) {
            result = -1;
        }
    }
    if (LIKELY(result >= 0)) {
        result = take_baton_back(self) < 0 ? -1 : result;
    }
    else {
        PyObject *type, *error, *traceback;
        PyErr_Fetch(&type, &error, &traceback);
        if (take_baton_back(self) < 0) {
            PyErr_Clear();
        }
        PyErr_Restore(type, error, traceback);
    }
    alert = result < 0 ? 0 : FLAG(window, alert);
    if (UNLIKELY(alert != 0) &&
        (alert < 0 || done(CALL(lane, settle, id_term, result == 0 ? Py_True : Py_False)) < 0)) {
        result = -1;
    }
    if (result < 0) {
        Py_CLEAR(reply->parts);
    }
    MARK(left);
    return result;
}

/* ---- reading and writing ----------------------------------------------------------------------------------------- */

static PyObject *
parts_of(const Reply *reply)
{
    return reply->parts != NULL ? Py_NewRef(reply->parts) : room_as_parts(reply);
}

/* Writes if that can be done at once, with the GIL kept: beside a thread that computes, to let it go costs a whole
 * switch interval until it is back, and the next request, which the reply brings, waits for that. -1 if it cannot. */
static Py_ssize_t
write_now(Plain *self, int fd, char *data, Py_ssize_t size)
{
#ifdef RWF_NOWAIT
    struct iovec part = {data, (size_t)size};
    Py_ssize_t written;
    if (self->must_let_go) {
        return -1;
    }
    written = pwritev2(fd, &part, 1, -1, RWF_NOWAIT);
    if (UNLIKELY(written < 0 && errno != EAGAIN)) {
        self->must_let_go = 1; /* a kernel or a file that does not know it */
    }
    return written;
#else
    (void)self, (void)fd, (void)data, (void)size;
    return -1;
#endif
}

/* Writes `total` bytes and lets go of the lock, which is taken; as Channel.finish does. -1 with an exception. */
static int
write_all(Plain *self, char *data, Py_ssize_t total)
{
    Py_ssize_t written = 0;
    int fd = -1, gone, result = 0;
    gone = FLAG(channel, gone);
    if (gone == 0) {
        fd = fd_of(self, W_writes);
    }
    if (gone < 0 || (gone == 0 && fd == -1 && PyErr_Occurred())) {
        result = -1;
    }
    else if (!gone) {
        MARK(write);
        written = write_now(self, fd, data, total);
        if (UNLIKELY(written < 0)) {
            Py_BEGIN_ALLOW_THREADS
            written = write(fd, data, (size_t)total);
            Py_END_ALLOW_THREADS
        }
        MARK(written);
        if (UNLIKELY(written != total)) { /* an error comes again there */
            PyObject *rest = PyBytes_FromStringAndSize(data, total);
            PyObject *count = PyLong_FromSsize_t(written < 0 ? 0 : written);
            result = rest == NULL || count == NULL ? -1 : done(CALL(channel, finish, rest, count));
            Py_XDECREF(rest);
            Py_XDECREF(count);
            return result;
        }
    }
    if (UNLIKELY(result < 0)) {
        PyObject *type, *error, *traceback;
        PyErr_Fetch(&type, &error, &traceback);
        Py_XDECREF(PyObject_CallFunctionObjArgs(PART(leave_writing), NULL));
        PyErr_Restore(type, error, traceback);
        return -1;
    }
    return done(PyObject_CallFunctionObjArgs(PART(leave_writing), NULL));
}

/* Puts its header before what is in the room of a reply; gives how long both are. */
static Py_ssize_t
put_header(Reply *reply)
{
    reply->room[0] = (char)(reply->size >> 24);
    reply->room[1] = (char)(reply->size >> 16);
    reply->room[2] = (char)(reply->size >> 8);
    reply->room[3] = (char)reply->size;
    return reply->size + HEADER_BYTES;
}

static int
send_frame(Plain *self, Reply *reply)
{
    PyObject *parts;
    int result;
    if (LIKELY(reply->parts == NULL && PyObject_Size(PART(held)) == 0)) {
        int taken = try_lock(PART(take_writing));
        if (LIKELY(taken > 0)) {
            result = write_all(self, reply->room, put_header(reply));
            if (result == 0 && UNLIKELY(PyObject_Size(PART(held)) != 0)) { /* another thread came meanwhile */
                result = done(CALL0(channel, write_out));
            }
            return result;
        }
        if (taken < 0) {
            return -1;
        }
    }
    parts = parts_of(reply);
    result = parts == NULL ? -1 : done(CALL(channel, send, parts));
    Py_XDECREF(parts);
    return result;
}

/* Answers the plain request that was read. */
static int
answer(Plain *self, Py_ssize_t size, Py_ssize_t body_at)
{
    Reply reply;
    const unsigned char *data = (const unsigned char *)self->buffer;
    PyObject *id_term = PyBytes_FromStringAndSize(self->buffer + ID_TERM_AT, ID_TERM_BYTES);
    int result;
    if (id_term == NULL) {
        return -1;
    }
    reply.parts = NULL;
    reply.size = 0;
    result = run_request(self, data + body_at, data + size, NULL, body_at - HEADER_BYTES, id_term, &reply);
    Py_DECREF(id_term);
    if (UNLIKELY(result == 1 ||
                 (result == 0 && (PyObject_Size(PART(queue)) != 0 || PyObject_Size(PART(ready)) != 0)))) {
        PyObject *parts = result == 1 ? Py_NewRef(Py_None) : parts_of(&reply);
        result = parts == NULL ? -1 : done(CALL(dispatcher, answered, PART(lane), parts));
        Py_XDECREF(parts);
    }
    else if (LIKELY(result == 0)) {
        result = send_frame(self, &reply);
        if (LIKELY(result == 0)) {
            result = SET(lane, running, Py_None);
            show_none(self);
        }
    }
    Py_XDECREF(reply.parts);
    return result;
}

/* ---- requests that come together --------------------------------------------------------------------------------- */

static double
now(Plain *self)
{
    double seconds;
    PyObject *time = PyObject_CallFunctionObjArgs(PART(monotonic), NULL);
    if (time == NULL) {
        return -1;
    }
    seconds = PyFloat_AsDouble(time);
    Py_DECREF(time);
    return seconds;
}

/* Writes what is held, as Channel.write_out does. */
static int
write_held(Plain *self)
{
    char frames[ROOM_BYTES];
    Py_ssize_t size = 0;
    int taken;
    if (PyObject_Size(PART(held)) == 0) {
        return 0;
    }
    taken = try_lock(PART(take_writing));
    if (UNLIKELY(taken <= 0)) {
        return taken < 0 ? -1 : done(CALL0(channel, write_out));
    }
    while (PyObject_Size(PART(held)) != 0) {
        Py_ssize_t bytes;
        PyObject *frame = PyObject_CallFunctionObjArgs(PART(take_held), NULL);
        if (frame == NULL) {
            PyErr_Clear(); /* it is found again below */
            break;
        }
        bytes = Py_TYPE(frame) == &PyBytes_Type ? PyBytes_Size(frame) : ROOM_BYTES + 1; /* a large one is a list */
        if (bytes > ROOM_BYTES - size) {
            taken = done(PyObject_CallFunctionObjArgs(PART(put_back), frame, NULL));
            Py_DECREF(frame);
            break;
        }
        memcpy(frames + size, PyBytes_AsString(frame), (size_t)bytes);
        size += bytes;
        Py_DECREF(frame);
    }
    if (write_all(self, frames, size) < 0 || taken < 0) {
        return -1;
    }
    if (LIKELY(PyObject_Size(PART(held)) == 0)) {
        PyObject *none = PyLong_FromLong(0);
        int result = none == NULL ? -1 : SET(channel, held_bytes, none);
        Py_XDECREF(none);
        return result;
    }
    return done(CALL0(channel, write_out)); /* what is too large for here, or came meanwhile */
}

/* Holds a reply for the next write, as Channel.hold does. */
static int
hold_reply(Plain *self, Reply *reply)
{
    PyObject *frame, *held_bytes;
    long long bytes;
    int result;
    if (UNLIKELY(reply->parts != NULL)) {
        return done(CALL(channel, hold, reply->parts));
    }
    frame = PyBytes_FromStringAndSize(reply->room, put_header(reply));
    result = frame == NULL ? -1 : done(PyObject_CallFunctionObjArgs(PART(hold_back), frame, NULL));
    Py_XDECREF(frame);
    if (result < 0) {
        return -1;
    }
    held_bytes = GET(channel, held_bytes);
    if (held_bytes == NULL) {
        return -1;
    }
    bytes = PyLong_AsLongLong(held_bytes) + reply->size;
    Py_DECREF(held_bytes);
    held_bytes = PyLong_FromLongLong(bytes);
    result = held_bytes == NULL ? -1 : SET(channel, held_bytes, held_bytes);
    Py_XDECREF(held_bytes);
    if (result == 0 && UNLIKELY(bytes > ROOM_BYTES - HEADER_BYTES ||
                                PyObject_Size(PART(held)) >= self->held_replies)) {
        result = write_held(self);
    }
    return result;
}

/* Notes how long the code that has just run took, if that is news. */
static int
time_code(Plain *self, int is_quick)
{
    int suspect, result;
    PyObject *ran = GET(evaluator, ran);
    if (ran == NULL || ran == Py_None) {
        Py_XDECREF(ran);
        return ran == NULL ? -1 : 0;
    }
    result = SET(evaluator, ran, Py_None);
    if (result == 0) {
        PyObject *value = PyObject_GetAttr(ran, WORD(suspect));
        suspect = value == NULL ? -1 : PyObject_IsTrue(value);
        Py_XDECREF(value);
        result = suspect < 0 ? -1 : 0;
        if (suspect > 0 || (suspect == 0 && !is_quick)) {
            result = done(PyObject_CallMethodObjArgs(ran, WORD(time), is_quick ? Py_True : Py_False, NULL));
        }
    }
    Py_DECREF(ran);
    return result;
}

/* Runs the request that `entry` of the queue holds, if it is plain. 1 if its reply is held or comes later, 0 if it is
 * not for here, -1 with an exception. */
static int
run_queued(Plain *self, PyObject *entry, double began)
{
    PyObject *frame = PyTuple_GetItem(entry, 0), *kind = PyTuple_GetItem(entry, 1);
    PyObject *id_term = PyTuple_GetItem(entry, 2), *options = NULL, *deadline = NULL;
    Py_ssize_t at = PyLong_AsSsize_t(PyTuple_GetItem(entry, 3)), size, options_bytes;
    double arrived = PyFloat_AsDouble(PyTuple_GetItem(entry, 4));
    const unsigned char *data;
    Reply reply;
    int result = 0;
    if (kind != WORD(eval) || Py_TYPE(frame) != &PyBytes_Type || PyBytes_Size(id_term) != ID_TERM_BYTES) {
        return 0;
    }
    options = GET(lane, usual_options);
    deadline = options == NULL ? NULL : GET(lane, usual_deadline_ms);
    if (deadline == NULL) {
        Py_XDECREF(options);
        return -1;
    }
    data = (const unsigned char *)PyBytes_AsString(frame);
    size = PyBytes_Size(frame);
    options_bytes = PyBytes_Size(options);
    if (size - at >= options_bytes && memcmp(data + at, PyBytes_AsString(options), (size_t)options_bytes) == 0 &&
        (began - arrived) * 1000 < PyFloat_AsDouble(deadline)) {
        at += options_bytes;
        reply.parts = NULL;
        reply.size = 0;
        result = run_request(self, data + at, data + size, frame, at, id_term, &reply);
        if (result == 0) {
            result = hold_reply(self, &reply);
        }
        Py_XDECREF(reply.parts);
        if (result >= 0) {
            result = SET(lane, running, Py_None) < 0 ? -1 : 1;
        }
    }
    Py_DECREF(options);
    Py_DECREF(deadline);
    return result;
}

/* Runs what is queued, as Dispatcher.work does, and leaves to that whatever is not for here. */
static int
run_queue(Plain *self)
{
    double held_since, ended, began = now(self);
    held_since = began;
    while (began >= 0 && PyObject_Size(PART(queue)) != 0 && PyObject_Size(PART(ready)) == 0) {
        int result;
        PyObject *entry = PyObject_CallFunctionObjArgs(PART(dequeue), NULL);
        if (entry == NULL) {
            return -1;
        }
        if (PyObject_Size(PART(held)) == 0) {
            held_since = began;
        }
        result = run_queued(self, entry, began);
        if (UNLIKELY(result == 0)) {
            result = done(PyObject_CallFunctionObjArgs(PART(unshift), entry, NULL));
            Py_DECREF(entry);
            return result < 0 ? -1 : done(CALL0(dispatcher, work));
        }
        Py_DECREF(entry);
        ended = result < 0 ? -1 : now(self);
        if (ended < 0 || time_code(self, (ended - began) * 1e6 < self->reply_hold_us) < 0) {
            return -1;
        }
        if (UNLIKELY((ended - held_since) * 1e6 > self->reply_hold_us) && write_held(self) < 0) {
            return -1;
        }
        if (UNLIKELY((ended - began) * 1e6 > self->look_again_us) && PyObject_Size(PART(queue)) != 0) {
            if (done(CALL0(dispatcher, look_again)) < 0) {
                return -1;
            }
            ended = now(self);
        }
        began = ended;
    }
    if (began < 0) {
        return -1;
    }
    if (UNLIKELY(PyObject_Size(PART(queue)) != 0 || PyObject_Size(PART(ready)) != 0)) {
        return done(CALL0(dispatcher, work));
    }
    show_none(self);
    return write_held(self);
}

/* Puts a request into the queue, as Router.route does. */
static int
enqueue(Plain *self, const unsigned char *frame, Py_ssize_t size, PyObject *arrived)
{
    PyObject *fields[5], *entry = PyTuple_New(5);
    int i, result = entry == NULL ? -1 : 0;
    fields[0] = PyBytes_FromStringAndSize((const char *)frame, size);
    fields[1] = Py_NewRef(WORD(eval));
    fields[2] = PyBytes_FromStringAndSize((const char *)frame + ID_TERM_AT - HEADER_BYTES, ID_TERM_BYTES);
    fields[3] = PyLong_FromLong(OPTIONS_AT - HEADER_BYTES);
    fields[4] = Py_NewRef(arrived);
    for (i = 0; i < 5; i++) {
        if (entry == NULL || fields[i] == NULL) {
            Py_XDECREF(fields[i]);
            result = -1;
        }
        else {
            PyTuple_SetItem(entry, i, fields[i]);
        }
    }
    if (result == 0) {
        result = done(PyObject_CallFunctionObjArgs(PART(enqueue), entry, NULL));
    }
    Py_XDECREF(entry);
    return result;
}

/* Answers the plain requests that were read, one behind another. While one runs, the others are where a cancel finds
 * them. */
static int
answer_all(Plain *self, Py_ssize_t size)
{
    const unsigned char *data = (const unsigned char *)self->buffer;
    Py_ssize_t at = 0;
    PyObject *arrived = PyObject_CallFunctionObjArgs(PART(monotonic), NULL);
    int result = arrived == NULL ? -1 : SET(dispatcher, mixed, Py_True);
    while (result == 0 && at < size) {
        Py_ssize_t bytes = length_at(data + at);
        result = enqueue(self, data + at + HEADER_BYTES, bytes, arrived);
        at += HEADER_BYTES + bytes;
    }
    Py_XDECREF(arrived);
    return result < 0 ? -1 : run_queue(self);
}

/* ---- the port ---------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(turn_doc,
             "turn($self, /)\n"
             "--\n\n"
             "Wait for bytes, between frames, and answer them if they are plain requests.\n"
             "\n"
             "Returns:\n"
             "    True if they were, or if a signal came first; else the bytes as they came, and None at\n"
             "    the end.");

static PyObject *
turn(PyObject *object, PyObject *Py_UNUSED(none))
{
    Plain *self = (Plain *)object;
    const unsigned char *data = (const unsigned char *)self->buffer;
    PyObject *options;
    Py_ssize_t size, options_bytes, first, whole;
    int failed, result, fd = fd_of(self, W_reads);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    MARK(wait);
    size = read(fd, self->buffer, (size_t)self->read_bytes);
    failed = errno;
    MARK(read);
    Py_END_ALLOW_THREADS
    if (UNLIKELY(size <= 0)) {
        if (size == 0) {
            return Py_NewRef(Py_None);
        }
        if (failed == EINTR) {
            return Py_NewRef(Py_True); /* handlers run between the bytecodes of the caller */
        }
        return CALL0(channel, receive); /* it comes again there */
    }
    options = GET(lane, usual_options);
    if (options == NULL) {
        return NULL;
    }
    options_bytes = PyBytes_Size(options);
    first = whole = plain_request(self, data, size, options, options_bytes);
    while (UNLIKELY(whole > 0 && whole < size)) {
        Py_ssize_t next = plain_request(self, data + whole, size - whole, options, options_bytes);
        whole = next > 0 ? whole + next : 0;
    }
    Py_DECREF(options);
    if (whole == 0) {
        return PyBytes_FromStringAndSize(self->buffer, size);
    }
    result = LIKELY(first == size) ? answer(self, size, OPTIONS_AT + options_bytes) : answer_all(self, size);
    return result < 0 ? NULL : Py_NewRef(Py_True);
}

PyDoc_STRVAR(run_doc,
             "run($self, frame, id_term, at, /)\n"
             "--\n\n"
             "Evaluate a plain request with the baton let go; give its reply.\n"
             "\n"
             "Args:\n"
             "    frame: the whole message, as bytes.\n"
             "    id_term: the id, of 8 bytes, as the bytes of its term.\n"
             "    at: where its code begins.\n"
             "\n"
             "Returns:\n"
             "    The reply, in parts, or None if it comes later.");

static PyObject *
run(PyObject *object, PyObject *args)
{
    Plain *self = (Plain *)object;
    Reply reply;
    PyObject *frame, *id_term, *parts = NULL;
    const unsigned char *data;
    Py_ssize_t at, size;
    int result;
    if (!PyArg_ParseTuple(args, "SSn:run", &frame, &id_term, &at)) {
        return NULL;
    }
    size = PyBytes_Size(frame);
    if (PyBytes_Size(id_term) != ID_TERM_BYTES || at < 0 || at > size) {
        PyErr_SetString(PyExc_ValueError, "no plain request");
        return NULL;
    }
    data = (const unsigned char *)PyBytes_AsString(frame);
    reply.parts = NULL;
    reply.size = 0;
    result = run_request(self, data + at, data + size, frame, at, id_term, &reply);
    if (result >= 0) {
        parts = result == 1 ? Py_NewRef(Py_None) : parts_of(&reply);
    }
    Py_XDECREF(reply.parts);
    return parts;
}

/* ---- calls into the BEAM ----------------------------------------------------------------------------------------- */

/* Whether the next bytes are those of a frame, and nothing else is to be waited for; -1 with an exception. */
static int
is_next_a_frame(Plain *self)
{
    if (PyObject_Size(PART(cancelled)) != 0 || PyObject_Size(PART(turns_held)) != 0) {
        return 0;
    }
    return FLAG(reader, between);
}

/* Tells whether a call is a usual one, and can be made. */
static int
may_ask(Plain *self, PyObject *id_term, PyObject *function, PyObject *arguments)
{
    PyObject *frame, *limit;
    long number, depth;
    int usual;
    if (PyObject_Size(PART(below)) >= self->max_nested_calls || Py_TYPE(id_term) != &PyBytes_Type ||
        PyBytes_Size(id_term) != ID_TERM_BYTES || Py_TYPE(function) != &PyLong_Type ||
        Py_TYPE(arguments) != &PyList_Type) {
        return 0;
    }
    number = PyLong_AsLong(function);
    if (number < 0 || number > 255) {
        PyErr_Clear();
        return 0;
    }
    usual = FLAG(calls, gone);
    usual = usual < 0 ? -1 : usual > 0 ? 0 : is_next_a_frame(self);
    if (usual <= 0) {
        return usual;
    }
    /* As Calls._check_depth: that deep there is no frame yet. */
    limit = PyObject_CallFunctionObjArgs(PART(recursion_limit), NULL);
    if (limit == NULL) {
        return -1;
    }
    depth = PyLong_AsLong(limit) - self->headroom;
    Py_DECREF(limit);
    frame = PyObject_CallFunction(PART(get_frame), "l", depth);
    if (UNLIKELY(frame != NULL)) {
        Py_DECREF(frame);
        return 0;
    }
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) {
        return -1;
    }
    PyErr_Clear();
    return 1;
}

/* Waits on for the answer, with Calls.go_on. None, or NULL with an exception. */
static PyObject *
go_on(Plain *self, PyObject *call, PyObject *data)
{
    int result = data == NULL ? -1 : done(CALL(calls, go_on, call, data));
    Py_XDECREF(data);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

/* Reads the answer to a call; its frame, or None with `call` answered, or NULL with an exception. */
static PyObject *
read_answer(Plain *self, PyObject *call, const char *call_id)
{
    PyObject *data;
    Py_ssize_t size;
    int failed, fd, usual = is_next_a_frame(self);
    /* Asked once more: while the arguments were written others had the baton. */
    if (usual <= 0) {
        return usual < 0 ? NULL : go_on(self, call, PyBytes_FromStringAndSize(NULL, 0));
    }
    fd = fd_of(self, W_reads);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    size = read(fd, self->answer, (size_t)self->read_bytes);
    failed = errno;
    Py_END_ALLOW_THREADS
    if (LIKELY(size >= (Py_ssize_t)(HEADER_BYTES + sizeof(answer_head) + CALL_ID_BYTES))) {
        const char *frame = self->answer + HEADER_BYTES;
        if (LIKELY(memcmp(frame, answer_head, sizeof(answer_head)) == 0 &&
                   memcmp(frame + sizeof(answer_head), call_id, CALL_ID_BYTES) == 0 &&
                   length_at((const unsigned char *)self->answer) == size - HEADER_BYTES &&
                   size - HEADER_BYTES <= self->max_frame_bytes)) {
            return PyBytes_FromStringAndSize(frame, size - HEADER_BYTES);
        }
    }
    if (size > 0 || (size < 0 && failed == EINTR)) { /* a handler of Python's runs in there */
        data = PyBytes_FromStringAndSize(self->answer, size < 0 ? 0 : size);
    }
    else {
        data = size == 0 ? Py_NewRef(Py_None) : CALL0(channel, receive);
    }
    return go_on(self, call, data);
}

/* Writes a call, and waits for the answer; gives what `read_answer` gives. */
static PyObject *
exchange(Plain *self, PyObject *call, const char *call_id, PyObject *id_term, PyObject *function, PyObject *arguments)
{
    char head[sizeof(invoke_head) + ID_TERM_BYTES + ID_TERM_BYTES + 2], *at = head;
    PyObject *frame = NULL, *key, *type, *error, *traceback;
    Reply invoke;
    int result;
    memcpy(at, invoke_head, sizeof(invoke_head));
    at += sizeof(invoke_head);
    memcpy(at, PyBytes_AsString(id_term), ID_TERM_BYTES);
    at += ID_TERM_BYTES;
    memcpy(at, answer_head + sizeof(answer_head) - 5, 5); /* a binary of 8 bytes */
    memcpy(at + 5, call_id, CALL_ID_BYTES);
    at += ID_TERM_BYTES;
    *at++ = 'a';
    *at++ = (char)PyLong_AsLong(function);
    invoke.parts = NULL;
    invoke.size = 0;
    if (UNLIKELY(write_message(self, head, at - head, arguments, &invoke) < 0)) {
        error = take_exception();
        Py_XDECREF(CALL(calls, not_written, error, PART(exports)));
        Py_DECREF(error);
        return NULL;
    }
    key = PyBytes_FromStringAndSize(call_id, CALL_ID_BYTES);
    if (key == NULL || take_baton_back(self) < 0) { /* before it is written, or another might read the answer */
        Py_XDECREF(key);
        Py_XDECREF(invoke.parts);
        return NULL;
    }
    result = PyDict_SetItem(PART(pending), key, call);
    if (result == 0 && send_frame(self, &invoke) == 0) {
        frame = read_answer(self, call, call_id);
    }
    Py_XDECREF(invoke.parts);
    PyErr_Fetch(&type, &error, &traceback);
    if (PyDict_DelItem(PART(pending), key) < 0) {
        PyErr_Clear(); /* it was taken out with the answer */
    }
    Py_DECREF(key);
    if (count_up(self, W_resumed) < 0 || let_baton_go(self) < 0) {
        Py_CLEAR(frame);
        return NULL;
    }
    PyErr_Restore(type, error, traceback);
    return frame;
}

/* The value that an answer carries. */
static PyObject *
value_of(Plain *self, PyObject *call, PyObject *frame)
{
    const Py_ssize_t at = sizeof(answer_head) + CALL_ID_BYTES;
    PyObject *where;
    Py_ssize_t end;
    int result;
    if (frame == Py_None) {
        return CALL(calls, result, call);
    }
    if (LIKELY(PyObject_Size(PART(turns_jobs)) == 0 && PyObject_Size(PART(tasks)) == 0 &&
               PyBytes_Size(frame) > at + (Py_ssize_t)sizeof(answer_ok) &&
               memcmp(PyBytes_AsString(frame) + at, answer_ok, sizeof(answer_ok)) == 0)) {
        return self->codec->read(PART(native), frame, at + sizeof(answer_ok), self->max_depth, &end);
    }
    where = Py_BuildValue("(On)", frame, at);
    result = where == NULL ? -1 : PyObject_SetAttr(call, WORD(answered), where);
    Py_XDECREF(where);
    return result < 0 ? NULL : CALL(calls, result, call);
}

PyDoc_STRVAR(ask_doc,
             "ask($self, id_term, function, args, /)\n"
             "--\n\n"
             "Do what Calls._in_main does, if the call is a usual one.\n"
             "\n"
             "Args:\n"
             "    id_term: the request that the function was given to, as the bytes of its id's term.\n"
             "    function: its number.\n"
             "    args: a list.\n"
             "\n"
             "Returns:\n"
             "    The result; NotImplemented if nothing was done.");

static PyObject *
ask(PyObject *object, PyObject *args)
{
    Plain *self = (Plain *)object;
    PyObject *id_term, *function, *arguments, *number, *call, *id, *type, *error, *traceback;
    PyObject *running = NULL, *ids = NULL, *empty = NULL, *frame = NULL, *value;
    int usual;
    if (!PyArg_ParseTuple(args, "OOO:ask", &id_term, &function, &arguments)) {
        return NULL;
    }
    usual = may_ask(self, id_term, function, arguments);
    if (usual <= 0) {
        return usual < 0 ? NULL : Py_NewRef(Py_NotImplemented);
    }
    number = PyIter_Next(PART(numbers));
    call = number == NULL ? NULL : PyObject_CallFunctionObjArgs(PART(new_call), number, id_term, NULL);
    Py_XDECREF(number);
    if (call == NULL) {
        return NULL;
    }
    id = PyObject_GetAttr(call, WORD(id));
    running = GET(lane, running);
    ids = GET(exports, ids);
    empty = PyList_New(0);
    /* As MainLane.pause. */
    if (id == NULL || running == NULL || ids == NULL || empty == NULL ||
        (PyObject_Size(PART(requests)) != 0 && done(CALL(output, flush_of, running)) < 0) ||
        PyList_Append(PART(below), running) < 0) {
        goto leave;
    }
    if (SET(output, running, Py_None) == 0 && SET(lane, running, Py_None) == 0 && SET(exports, ids, empty) == 0) {
        frame = exchange(self, call, PyBytes_AsString(id), id_term, function, arguments);
    }
    /* As MainLane.resume. */
    PyErr_Fetch(&type, &error, &traceback);
    if (SET(exports, ids, ids) < 0 || done(CALL0(below, pop)) < 0 || SET(lane, running, running) < 0 ||
        SET(output, running, running) < 0) {
        Py_CLEAR(frame);
        goto leave;
    }
    PyErr_Restore(type, error, traceback);
    if (UNLIKELY(frame != NULL && PyObject_Size(PART(cancelled)) != 0 && done(CALL0(lane, check)) < 0)) {
        Py_CLEAR(frame);
    }
leave:
    value = frame == NULL ? NULL : value_of(self, call, frame);
    Py_XDECREF(frame);
    Py_XDECREF(empty);
    Py_XDECREF(ids);
    Py_XDECREF(running);
    Py_XDECREF(id);
    Py_DECREF(call);
    return value;
}

/* ---- the type ---------------------------------------------------------------------------------------------------- */

static int
plain_clear(PyObject *object)
{
    Plain *self = (Plain *)object;
    int i;
    for (i = 0; i < P_COUNT; i++) {
        Py_CLEAR(self->parts[i]);
    }
    for (i = 0; i < W_COUNT; i++) {
        Py_CLEAR(self->words[i]);
    }
    Py_CLEAR(self->evaluate_now);
    return 0;
}

static int
plain_traverse(PyObject *object, visitproc visit, void *arg)
{
    Plain *self = (Plain *)object;
    int i;
    Py_VISIT(Py_TYPE(object));
    for (i = 0; i < P_COUNT; i++) {
        Py_VISIT(self->parts[i]);
    }
    Py_VISIT(self->evaluate_now);
    return 0;
}

static void
plain_dealloc(PyObject *object)
{
    Plain *self = (Plain *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    PyObject_GC_UnTrack(object);
    if (self->page.buf != NULL) {
        PyBuffer_Release(&self->page);
    }
    PyMem_Free(self->buffer);
    PyMem_Free(self->answer);
    plain_clear(object);
    free_object(object);
    Py_DECREF(type);
}

static PyObject *
plain_new(PyTypeObject *type, PyObject *args, PyObject *given)
{
    static const char *const part_names[] = {
#define X(name) #name,
        PARTS(X)
#undef X
    };
    static const char *const word_names[] = {
#define X(name) #name,
        WORDS(X)
#undef X
    };
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *object = allocate(type, 0), *number;
    Plain *self = (Plain *)object;
    int i;
    if (object == NULL) {
        return NULL;
    }
    if (PyTuple_Size(args) != 0 || given == NULL) {
        PyErr_SetString(PyExc_TypeError, "what it works with is given by name");
        goto failed;
    }
    for (i = 0; i < P_COUNT; i++) {
        self->parts[i] = Py_XNewRef(PyDict_GetItemString(given, part_names[i]));
        if (self->parts[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s is missing", part_names[i]);
            goto failed;
        }
    }
    for (i = 0; i < W_COUNT; i++) {
        self->words[i] = PyUnicode_InternFromString(word_names[i]);
        if (self->words[i] == NULL) {
            goto failed;
        }
    }
#define NUMBER(field)                                                                                                  \
    number = PyDict_GetItemString(given, #field);                                                                      \
    if (number == NULL) {                                                                                              \
        PyErr_SetString(PyExc_TypeError, #field " is missing");                                                        \
        goto failed;                                                                                                   \
    }                                                                                                                  \
    self->field = PyLong_AsLong(number);                                                                               \
    if (PyErr_Occurred()) {                                                                                            \
        goto failed;                                                                                                   \
    }
    NUMBER(read_bytes)
    NUMBER(max_frame_bytes)
    NUMBER(max_depth)
    NUMBER(held_replies)
    NUMBER(reply_hold_us)
    NUMBER(look_again_us)
    NUMBER(max_nested_calls)
    NUMBER(headroom)
#undef NUMBER
    self->codec = PyCapsule_Import(NATIVE_API_NAME, 0);
    if (self->codec == NULL) {
        goto failed;
    }
    if (PART(page) != Py_None) {
        if (PyObject_GetBuffer(PART(page), &self->page, PyBUF_WRITABLE) < 0) {
            goto failed;
        }
        if (self->page.len < PAGE_BYTES) {
            PyErr_SetString(PyExc_ValueError, "the page is too small");
            goto failed;
        }
    }
    self->evaluate_now = PyCFunction_New(&evaluate_now_method, object);
    self->buffer = PyMem_Malloc((size_t)self->read_bytes);
    self->answer = PyMem_Malloc((size_t)self->read_bytes);
    if (self->buffer == NULL || self->answer == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    if (self->evaluate_now == NULL) {
        goto failed;
    }
    return object;
failed:
    Py_DECREF(object);
    return NULL;
}

PyDoc_STRVAR(is_evaluating_doc,
             "is_evaluating($self, /)\n"
             "--\n\n"
             "Tell whether a request is being evaluated: its code runs, or its reply is being made.");

static PyObject *
is_evaluating(PyObject *object, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(((Plain *)object)->evaluating);
}

static PyMethodDef plain_methods[] = {
    {"is_evaluating", is_evaluating, METH_NOARGS, is_evaluating_doc},
    {"turn", turn, METH_NOARGS, turn_doc},
    {"run", run, METH_VARARGS, run_doc},
    {"ask", ask, METH_VARARGS, ask_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot plain_slots[] = {
    {Py_tp_doc, "Reads, evaluates and answers plain requests, and calls into the BEAM. For the main thread."},
    {Py_tp_new, plain_new},
    {Py_tp_dealloc, plain_dealloc},
    {Py_tp_traverse, plain_traverse},
    {Py_tp_clear, plain_clear},
    {Py_tp_methods, plain_methods},
    {0, NULL},
};

static PyType_Spec plain_spec = {
    .name = "port_server.server._plain.Plain",
    .basicsize = sizeof(Plain),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = plain_slots,
};

static int
module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &plain_spec, NULL);
    int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return result;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_plain",
    .m_doc = "The plain request, from the read that brings it to the write of its reply.",
    .m_size = 0,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__plain(void) { return PyModuleDef_Init(&definition); }
